"""What a reader wants to know of a run of the suite, in a few words each."""

from rwkv_jax.evaluation.suite.run import SuiteResults

Facts = dict[str, str]
MODES = {
    "clip": "of CLIP (Radford et al. 2021)",
    "deepglint": "of the authors' code (deepglint/RWKV-CLIP)",
}


def facts_of(
    results: SuiteResults,
    *,
    name: str,
    parameters: int,
    step: int | None,
    parameter_hash: str,
    precision: str,
    versions: dict[str, str],
) -> Facts:
    """Facts by title; "Model" is the name in the tables."""
    found = {
        "Model": name,
        "Parameters": f"{parameters:,}",
        "Step": f"{step:,}" if step is not None else "not known",
        "Parameter hash": parameter_hash[:12],
        "Protocol": MODES[results.protocol.mode],
        "Switches": ", ".join(results.protocol.switches) or "none",
        "Measured": _count(len(results.measured), "task"),
        "Not on disk": _count(len(results.missing), "set"),
        "Precision": precision,
        "Device": versions["device"],
        "JAX": versions["jax"],
        "Code": versions["code"],
    }
    return found | ({"Failed": _count(len(results.failed), "task")} if results.failed else {})


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
