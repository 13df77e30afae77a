"""A small open emoji in its real format: npm tarballs with shapes that we drew, and a registry."""

import base64
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rwkv_jax.data.open_emoji.sources import Package, Sources

# By label: code, group, subgroup, tags. "robot" and "two hearts" are held out.
EMOJIS: dict[str, tuple[str, int, int, list[str]]] = {
    "grinning face": ("1F600", 0, 0, ["happy", "smile"]),
    "red heart": ("2764", 0, 1, ["love"]),
    "two hearts": ("1F495", 0, 1, []),
    "robot": ("1F916", 0, 2, ["machine"]),
    "person running": ("1F3C3", 1, 3, ["run"]),
    "man running": ("1F3C3-200D-2642-FE0F", 1, 3, ["run"]),
    "church": ("26EA", 3, 4, ["building"]),
    "cookie": ("1F36A", 3, 5, ["sweet"]),
    "light skin tone": ("1F3FB", 2, 6, []),
    "flag: Germany": ("1F1E9-1F1EA", 4, 7, []),
}
UNICODE_NAMES = {
    "1F600": "GRINNING FACE",
    "2764": "HEAVY BLACK HEART",
    "1F495": "TWO HEARTS",
    "1F916": "ROBOT FACE",
    "1F3C3": "RUNNER",
    "1F3C3-200D-2642-FE0F": "RUNNER, MALE SIGN",
    "26EA": "CHURCH",
    "1F36A": "COOKIE",
}
GROUPS = ["smileys-emotion", "people-body", "component", "food-travel", "flags"]
SUBGROUPS = ["face", "heart", "costume", "sport", "place", "sweet", "skin-tone", "country-flag"]


def body(artist: int, shape: int) -> str:
    """A picture of 16 x 16: the artist's colour, a bar whose place tells the emoji."""
    colour = f"#{40 * artist:02x}{200 - 30 * artist:02x}80"
    return f'<rect x="{2 * shape}" y="4" width="2" height="8" fill="{colour}"/>'


def tarball(files: dict[str, Any]) -> bytes:
    """As npm has it: everything below `package/`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            encoded = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(encoded)
            archive.addfile(member, io.BytesIO(encoded))
    return gzip.compress(buffer.getvalue(), mtime=0)  # the same bytes whenever it is made


def _contents() -> dict[str, dict[str, Any]]:
    """The files in each package."""
    labels = list(EMOJIS)
    shape = {label: labels.index(label) % 8 for label in labels}

    def icons(artist: int, drawn: dict[str, str], aliases: dict | None = None) -> dict:
        """`drawn`: labels by icon name."""
        bodies = {name: {"body": body(artist, shape[label])} for name, label in drawn.items()}
        return {"prefix": "x", "icons": bodies, "aliases": aliases or {}, "width": 16, "height": 16}

    def chars(drawn: dict[str, str]) -> dict[str, str]:
        return {EMOJIS[label][0].lower(): name for name, label in drawn.items()}

    everything = {label.replace(" ", "-").replace(":", ""): label for label in labels}
    most = {name: label for name, label in everything.items() if label != "church"}
    few = {"heart": "red heart", "robot": "robot"}
    # Twemoji draws both runners alike.
    twemoji = icons(1, most)
    twemoji["icons"]["man-running"] = twemoji["icons"]["person-running"]
    # Fluent's hearts are the heart, mirrored.
    mirrored = {"two-hearts": {"parent": "heart", "hFlip": True}}
    return {
        "noto": {"icons.json": icons(0, everything), "chars.json": chars(everything)},
        "twemoji": {"icons.json": twemoji, "chars.json": chars(most)},
        "openmoji": {
            "icons.json": icons(2, {"cookie": "cookie"}, {"biscuit": {"parent": "cookie"}}),
            "chars.json": {"1f36a": "cookie"},
        },
        # Named after the label, the Unicode name, what OpenMoji calls it, and nothing known.
        "emojione": {
            "icons.json": icons(
                3,
                {
                    "grinning-face": "grinning face",
                    "heavy-black-heart": "red heart",
                    "biscuit": "cookie",
                    "letter-a": "robot",
                },
            ),
            "chars.json": {},
        },
        # A shortcode, one of the exceptions, and a drawing that is not what its name says.
        "fxemoji": {
            "icons.json": icons(4, {"droid": "robot", "2hearts": "two hearts", "window": "church"}),
            "chars.json": {},
        },
        "fluent": {
            "icons.json": icons(5, few, mirrored),
            "chars.json": {**chars(few), "1f495": "two-hearts"},
        },
        "emojibase-data": {
            "en/data.json": [
                {
                    "label": label,
                    "hexcode": code,
                    "tags": tags,
                    "group": group,
                    "subgroup": subgroup,
                    "order": order,
                    "skins": [{"label": f"{label}: light skin tone", "hexcode": f"{code}-1F3FB"}],
                }
                for order, (label, (code, group, subgroup, tags)) in enumerate(EMOJIS.items())
            ]
            + [{"label": "regional indicator A", "hexcode": "1F1E6"}],
            # Two subgroups of the same order, as in the real file.
            "en/messages.json": {
                "groups": [{"key": key, "message": f"{key} title"} for key in GROUPS],
                "subgroups": [
                    {"key": key, "message": f"{key} title", "order": min(order, 4)}
                    for order, key in enumerate(SUBGROUPS)
                ],
            },
            "meta/groups.json": {
                "groups": {str(index): key for index, key in enumerate(GROUPS)},
                "subgroups": {str(index): key for index, key in enumerate(SUBGROUPS)},
            },
            "meta/unicode-names.json": UNICODE_NAMES,
            "en/shortcodes/joypixels.json": {"1F916": ["droid", "robot"], "2764": "heart"},
        },
        "emojilib": {
            "dist/emoji-en-US.json": {
                "😀": ["grinning_face", "big_grin", ":D"],
                "❤️": ["red_heart", "like"],
            }
        },
    }


def make() -> tuple[Sources, dict[str, bytes]]:
    """The sources, and the tarballs by file name."""
    packages = {}
    tarballs = {}
    for name, files in _contents().items():
        npm_name = name if name.startswith("emoji") and name != "emojione" else f"@tiny/{name}"
        described = {"package.json": {"name": npm_name, "version": "1.0.0"}, **files}
        packed = tarball(described)
        digest = hashlib.sha512(packed).hexdigest()
        package = Package(f"{npm_name}@1.0.0", digest, name, "us", "https://example.org", "MIT")
        packages[name] = package
        tarballs[package.filename] = packed
    emojibase, emojilib = packages.pop("emojibase-data"), packages.pop("emojilib")
    return Sources(packages, emojibase, emojilib), tarballs


def put(tarballs: dict[str, bytes], folder: Path) -> None:
    """As a person without a network would."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tarballs.items():
        (folder / name).write_bytes(content)


@contextlib.contextmanager
def registry(tarballs: dict[str, bytes]) -> Iterator[str]:
    """An npm registry on this machine that has these tarballs; gives its address."""
    by_name = {}
    for content in tarballs.values():
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            file = archive.extractfile("package/package.json")
            assert file is not None
            by_name[json.load(file)["name"]] = content

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(self.path).lstrip("/")
            name = path.removesuffix(".tgz")
            if name not in by_name:
                self.send_error(404)
                return
            content = by_name[name]
            if not path.endswith(".tgz"):
                integrity = base64.b64encode(hashlib.sha512(content).digest()).decode()
                dist = {"tarball": f"{address}/{name}.tgz", "integrity": f"sha512-{integrity}"}
                version = {"name": name, "version": "1.0.0", "dist": dist}
                content = json.dumps({"name": name, "versions": {"1.0.0": version}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
