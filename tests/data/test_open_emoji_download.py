"""npm packages are fetched through the real npm, from a registry on this machine."""

import io
import tarfile

import pytest
import tiny_open_emoji as tiny

from rwkv_jax.data.open_emoji.download import fetch, read_json
from rwkv_jax.data.records import DatasetError


@pytest.fixture
def npm_settings(tmp_path, monkeypatch):
    """Gives a function that sets npm's registry; npm keeps nothing outside tmp_path."""
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm-cache"))
    monkeypatch.setenv("npm_config_noproxy", "127.0.0.1")
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "npmrc"))
    return lambda address: monkeypatch.setenv("npm_config_registry", address)


def test_fetches_from_a_registry_and_then_needs_none(tmp_path, npm_settings):
    sources, tarballs = tiny.make()
    folder = tmp_path / "downloads"
    with tiny.registry(tarballs) as address:
        npm_settings(address)
        paths = fetch(sources.packages, folder)
    assert {path.name: path.read_bytes() for path in paths.values()} == tarballs
    assert sorted(path.name for path in folder.iterdir()) == sorted(tarballs)
    # The registry is gone; asking it would fail.
    assert fetch(sources.packages, folder) == paths


def test_without_a_network_the_error_names_what_to_put_where(tmp_path, npm_settings):
    sources, tarballs = tiny.make()
    folder = tmp_path / "downloads"
    tiny.put(tarballs, folder)
    (folder / "tiny-noto-1.0.0.tgz").unlink()
    npm_settings("http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(DatasetError, match=r"npm could not fetch.*ECONNREFUSED") as caught:
        fetch(sources.packages, folder)
    message = str(caught.value)
    assert (
        f"or put these tarballs of the npm registry into {folder}: tiny-noto-1.0.0.tgz" in message
    )
    assert not list(folder.glob(".partial*"))


def test_what_the_registry_sends_is_not_trusted(tmp_path, npm_settings):
    sources, _ = tiny.make()
    other = tiny.tarball({"package.json": {"name": "emojilib", "version": "1.0.0"}, "x": 1})
    folder = tmp_path / "downloads"
    with tiny.registry({"emojilib-1.0.0.tgz": other}) as address:
        npm_settings(address)
        with pytest.raises(DatasetError, match=r"is not emojilib@1.0.0: its sha512 begins"):
            fetch([sources.emojilib], folder)
    assert not list(folder.iterdir())


def test_a_damaged_download_is_named(tmp_path):
    sources, tarballs = tiny.make()
    tiny.put(tarballs, tmp_path)
    path = tmp_path / "tiny-fluent-1.0.0.tgz"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DatasetError, match=r"fluent-1.0.0.tgz is not @tiny/fluent@1.0.0.*Delete"):
        fetch(sources.packages, tmp_path)


def test_read_json_reads_only_files_of_the_package(tmp_path):
    path = tmp_path / "a.tgz"
    path.write_bytes(tiny.tarball({"a.json": {"x": 1}, "deep/b.json": [2]}))
    assert read_json(path, "deep/b.json", "a.json") == [[2], {"x": 1}]
    with pytest.raises(DatasetError, match=r"does not contain c\.json"):
        read_json(path, "a.json", "c.json")

    # A link in place of a file is not followed.
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("package/a.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    with pytest.raises(DatasetError, match=r"does not contain a\.json"):
        read_json(path, "a.json")


def test_read_json_of_a_broken_tarball(tmp_path):
    path = tmp_path / "a.tgz"
    whole = tiny.tarball({"big.json": list(range(5000)), "a.json": 1})
    for content in (b"no tarball", whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"a\.tgz (cannot be read|does not contain)"):
            read_json(path, "a.json")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/a.json")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"{,}"))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DatasetError, match="cannot be read"):
        read_json(path, "a.json")
