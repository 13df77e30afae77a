"""What open emoji is made of: npm packages with their checksums, licences and authors, as data.

A licence is what the package itself says at this version (package.json and info.json, or LICENSE).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """One npm package at one version.

    Attributes:
      spec: what npm calls it, "NAME@VERSION".
      sha512: of the tarball, in hexadecimal.
      title: what its authors call it.
      author: whom to credit.
      url: where the work comes from.
      licence: SPDX identifier.
    """

    spec: str
    sha512: str
    title: str
    author: str
    url: str
    licence: str

    @property
    def filename(self) -> str:
        """The tarball's name as `npm pack` writes it."""
        return self.spec.removeprefix("@").replace("/", "-").replace("@", "-") + ".tgz"


@dataclass(frozen=True)
class Sources:
    """Attributes:
    artists: their icon sets, in Iconify's JSON format.
    emojibase: labels, tags, groups, Unicode names.
    emojilib: keywords.
    """

    artists: dict[str, Package]
    emojibase: Package
    emojilib: Package

    @property
    def packages(self) -> tuple[Package, ...]:
        """All of them."""
        return (*self.artists.values(), self.emojibase, self.emojilib)


_ARTISTS = {
    "noto": Package(
        "@iconify-json/noto@1.2.9",
        "0d08ae5c435bba7e35721f973d2579e47f456962a91d3cb3e3a6082ad49a2980"
        "f87c80c3ccbd6d47a1f89e9fd3dfc8dfad301e237adc285d26a8761e65502e6b",
        "Noto Emoji",
        "Google Inc",
        "https://github.com/googlefonts/noto-emoji",
        "Apache-2.0",
    ),
    "twemoji": Package(
        "@iconify-json/twemoji@1.2.5",
        "b8aa6e204574bfa2b9056dcc8ddca5f972855406db70fc408227cabc432d6685"
        "19079f98898e7368c9b6b8d342c725f301653dc8d2e58f8d5653afe6be000bb3",
        "Twitter Emoji",
        "Twitter",
        "https://github.com/jdecked/twemoji",
        "CC-BY-4.0",
    ),
    "openmoji": Package(
        "@iconify-json/openmoji@1.2.29",
        "bd776192a7175523bab2ecbe9bd2db71433739d572b8d3ada55f3f6a5b3f5aa7"
        "e44084717af2f919e6ff83ee861ff4309ead4eaa4b0499a0c64c2999e6714a25",
        "OpenMoji",
        "OpenMoji",
        "https://github.com/hfg-gmuend/openmoji",
        "CC-BY-SA-4.0",
    ),
    "emojione": Package(
        "@iconify-json/emojione@1.2.3",
        "4fdf93dc721b24d2ca2ac9b160a95a621be71d8933fc73584d5ed21c25d564f7"
        "de522e05aac918ef461e37cc980194fc702bfbc39bc9c52e10d66f336fd08c32",
        "Emoji One (Colored)",
        "Emoji One",
        "https://github.com/EmojiTwo/emojitwo",
        "CC-BY-4.0",
    ),
    "fxemoji": Package(
        "@iconify-json/fxemoji@1.2.2",
        "5006ac45ac7315429f2064a62f09e86abb2cb00e0b5f454b2ee126a6522a33a6"
        "4d42a21046d6aff2d6781f59de4e506b797b8c4320227ebe633f8927efc0e989",
        "Firefox OS Emoji",
        "Mozilla",
        "https://github.com/mozilla/fxemoji",
        # The package says Apache-2.0, which is the code's; this is for the "visual design".
        "CC-BY-4.0",
    ),
    "fluent": Package(
        "@iconify-json/fluent-emoji-flat@1.2.6",
        "458e3b4603dbe3b7d8522cab03ae2c20e2f4f94534dacdbdb17a4d05b2104415"
        "253e57cd1532949990c4446bb10ecffbc8d196a9062fb9a4983353387d15e553",
        "Fluent Emoji Flat",
        "Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
        "MIT",
    ),
}
_EMOJIBASE = Package(
    "emojibase-data@17.0.0",
    "62f81be405a81d588757f82ad6aaf96406ab7018a9f81dbbfd92d1b142646e00"
    "0468b959fdfa1ff60f3cd8b4e9984a728413440b49b6484988b658c7b13ca08c",
    "Emojibase",
    "Miles Johnson",
    "https://github.com/milesj/emojibase",
    "MIT",
)
_EMOJILIB = Package(
    "emojilib@4.0.3",
    "29b5a262b7bd69149a3db1eb1d9233f739a833edb52c0b0ad55149b674e1d550"
    "ad584feb34c0ef8868504e6b1e94597de5d86ab46958db6887d25786e41b96d2",
    "emojilib",
    "Mu-An Chiou",
    "https://github.com/muan/emojilib",
    "MIT",
)
SOURCES = Sources(_ARTISTS, _EMOJIBASE, _EMOJILIB)

# The artist whose pictures are never trained on.
NEW_ARTIST = "noto"
# Their packages give no code points, only names.
MATCHED_BY_NAME = ("emojione", "fxemoji")

# People wrote all of the texts; none is generated.
TEXT_KINDS: dict[str, str] = {
    "name": "the Unicode character names (Unicode Consortium), through emojibase-data",
    "label": "the CLDR short name (Unicode Consortium), through emojibase-data",
    "tags": "keywords of emojibase-data, and keywords of emojilib: one text each",
}
