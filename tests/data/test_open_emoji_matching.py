"""Names, code points, concept groups and SVG: the parts that decide what a picture is."""

import cv2
import numpy as np
import pytest

from rwkv_jax.data.open_emoji.emoji import Emoji
from rwkv_jax.data.open_emoji.icons import IconSet, code_points
from rwkv_jax.data.open_emoji.matching import match_by_code, match_by_name, slug
from rwkv_jax.data.open_emoji.render import render, render_all
from rwkv_jax.data.open_emoji.splits import concept_group, is_held_out, split_of


def emoji(code: str, label: str) -> Emoji:
    return Emoji(code, label, label, (), "group", "subgroup")


def icon_set(*names: str, **options) -> IconSet:
    return IconSet(
        {name: {"body": f"<g id='{name}'/>"} for name in names}, **{"aliases": {}, **options}
    )


def test_variation_selectors_do_not_count():
    assert code_points("2764-fe0f") == "2764"
    assert code_points("1F3C3-200D-2642-FE0F") == "1F3C3-200D-2642"
    icons = icon_set("a", names_by_code={"2764": "a"})
    assert match_by_code(icons, [emoji("2764", "red heart"), emoji("1F600", "x")]) == {"2764": "a"}


def test_slug():
    assert slug("Piñata & co.") == slug("pinata-and-co") == "pinataandco"
    assert slug("woman\u2019s hat") == "womanshat"


def test_an_ambiguous_name_matches_nothing():
    emojis = [emoji("1", "ball"), emoji("2", "globe"), emoji("3", "world")]
    labels = {"1": {"ball"}, "2": {"globe"}, "3": {"world"}}
    others = {"1": {"round"}, "2": {"round", "earth"}, "3": {"ball"}}
    icons = icon_set("round", "ball", "earth")
    # "ball" is a label, which counts for more than another's other name.
    assert match_by_name(icons, emojis, [labels, others], {}) == {"1": "ball", "2": "earth"}


def test_exceptions_come_before_names():
    emojis = [emoji("1", "up button"), emoji("2", "pointing up")]
    names = {"1": {"up"}, "2": {"pointing up"}}
    icons = icon_set("up", "pointing-up")
    assert match_by_name(icons, emojis, [names], {"up": "pointing up"}) == {"2": "up"}
    assert match_by_name(icons, emojis, [names], {"up": None}) == {"2": "pointing-up"}
    assert match_by_name(icons, emojis, [names], {"absent": "up button"}) == {
        "1": "up",
        "2": "pointing-up",
    }


@pytest.mark.parametrize(
    ("label", "group"),
    [
        ("man firefighter", "firefighter"),
        ("firefighter", "firefighter"),
        ("person walking: facing right", "walking"),
        ("woman walking", "walking"),
        ("kiss: woman, man", "kiss"),
        ("family: adult, adult, child", "family"),
        ("woman: red hair", "red hair"),
        ("men\u2019s room", "room"),
        ("Mrs. Claus", "claus"),
        ("Santa Claus", "claus"),
        ("mermaid", "merperson"),
        ("older person", "old"),
        ("old woman", "old"),
        ("woman and man holding hands", "holding hands"),
        ("girl", "person"),
        ("red heart", "red heart"),
    ],
)
def test_concept_group(label, group):
    assert concept_group(label) == group


def test_held_out_concepts_never_change():
    held_out = ["robot", "two hearts", "man teacher", "woman teacher", "teacher", "taxi"]
    kept = ["grinning face", "red heart", "man running", "family", "person", "church"]
    assert [label for label in held_out + kept if is_held_out(label)] == held_out


def test_split_of():
    assert split_of("noto", "robot", seen=False) == "new_concepts"
    assert split_of("twemoji", "robot", seen=False) == "new_concepts_known_artists"
    assert split_of("twemoji", "red heart", seen=True) == "train"
    assert split_of("noto", "red heart", seen=True) == "new_artist"
    assert split_of("noto", "red heart", seen=False) is None


def decoded(svg: str) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(render(svg), np.uint8), cv2.IMREAD_COLOR)


BAR = '<rect x="0" y="0" width="2" height="16" fill="#000000"/>'


@pytest.mark.parametrize(
    ("transformation", "expected"),
    [
        ({}, lambda image: image),
        ({"hFlip": True}, lambda image: image[:, ::-1]),
        ({"vFlip": True}, lambda image: image[::-1]),
        ({"rotate": 1}, lambda image: np.rot90(image, k=-1)),  # clockwise
        ({"rotate": 2, "hFlip": True, "vFlip": True}, lambda image: image),
    ],
)
def test_aliases_mirror_and_turn(transformation, expected):
    corner = '<rect x="0" y="4" width="2" height="4" fill="#ff0000"/>'
    icons = IconSet(
        {"a": {"body": corner}}, {"b": {"parent": "a", **transformation}, "c": {"parent": "b"}}
    )
    np.testing.assert_array_equal(decoded(icons.svg("c")), expected(decoded(icons.svg("a"))))
    assert icons.other_names() == ({} if transformation else {"a": ["b", "c"]})


def test_a_wide_drawing_is_centred_in_a_square():
    icons = IconSet({"a": {"body": BAR, "width": 16, "height": 8}}, {})
    image = decoded(icons.svg("a"))
    dark = np.argwhere(image[..., 0] < 128)
    # 2 of 16 wide, from 4/16 down: what lies below its own 8 is drawn too, into the margin.
    assert dark[:, 1].max() == 8
    assert dark[:, 0].min() == 18


def test_rendering_many_keeps_the_order():
    svgs = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
        f'<rect width="16" height="16" fill="#{grey:02x}{grey:02x}{grey:02x}"/></svg>'
        for grey in range(256)
    ]
    images = render_all(svgs)  # enough of them for several processes
    first = [
        cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[36, 36, 0] for png in images
    ]
    assert first == list(range(256))


def test_a_broken_svg_is_an_error():
    with pytest.raises(ValueError, match=r".+"):
        render("<svg")
