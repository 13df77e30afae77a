"""The 27 sets of CLIP's linear probe, in the order of its table 9, which the sizes are from.

Sizes that differ from the paper's have a remark. Where a paper's own draw was not published
(CLEVR, EuroSAT, RESISC45, STL-10; SUN397 of the authors' code, which seeds its draw with Python's
hash of a string, another number in every process), as many pictures are drawn by hash instead.
"""

from types import MappingProxyType

from rwkv_jax.evaluation.catalog.entry import ClassificationSet, Draw, Parts, Pick, Tfds

TRAIN, VALIDATION, TEST = Pick("train"), Pick("validation"), Pick("test")

_ROWS = (
    ClassificationSet(
        "food101",
        "Food101",
        "accuracy",
        {"clip": Parts(TRAIN, VALIDATION, 75_750, 25_250)},
        Tfds("food101", "2.*.*"),
    ),
    ClassificationSet(
        "cifar10",
        "CIFAR10",
        "accuracy",
        {"clip": Parts(TRAIN, TEST, 50_000, 10_000)},
        Tfds("cifar10", "3.*.*"),
    ),
    ClassificationSet(
        "cifar100",
        "CIFAR100",
        "accuracy",
        {"clip": Parts(TRAIN, TEST, 50_000, 10_000)},
        Tfds("cifar100", "3.*.*"),
    ),
    ClassificationSet(
        "birdsnap",
        "Birdsnap",
        "accuracy",
        {"clip": Parts(TRAIN, TEST, 42_283, 2_149)},
        get="https://thomasberg.org/datasets/birdsnap/1.1/birdsnap.tgz",
    ),
    ClassificationSet(
        "sun397",
        "SUN397",
        "accuracy",
        {
            "clip": Parts(TRAIN, TEST, 19_850, 19_850),  # the first official partition
            "deepglint": Parts(
                Pick("train+validation+test", Draw(19_850), config="tfds"),
                Pick("train+validation+test", Draw(19_850, skip=19_850), config="tfds"),
                19_850,
                19_850,
            ),
        },
        Tfds("sun397", "4.*.*", config="standard-part1-120k"),
    ),
    ClassificationSet(
        "cars",
        "Cars",
        "accuracy",
        {"clip": Parts(TRAIN, TEST, 8_144, 8_041)},
        Tfds("cars196", "2.*.*"),
    ),
    ClassificationSet(
        "aircraft",
        "Aircraft",
        "mean_per_class",
        {"clip": Parts(TRAIN, TEST, 3_334, 3_333, VALIDATION, 3_333)},
        layout="aircraft",
        get="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    ),
    ClassificationSet(
        "voc2007",
        "VOC2007",
        "map_11",
        {"clip": Parts(TRAIN, TEST, 2_501, 4_952, VALIDATION, 2_510)},
        Tfds("voc", "5.*.*", config="2007", derive="voc_classes"),
    ),
    ClassificationSet(
        "dtd",
        "DTD",
        "accuracy",
        {"clip": Parts(TRAIN, TEST, 1_880, 1_880, VALIDATION, 1_880)},
        Tfds("dtd", "3.*.*"),
    ),
    ClassificationSet(
        "pets",
        "Pets",
        "mean_per_class",
        {"clip": Parts(TRAIN, TEST, 3_680, 3_669)},
        Tfds("oxford_iiit_pet", "4.*.*"),
    ),
    ClassificationSet(
        "caltech101",
        "Caltech101",
        "mean_per_class",
        {
            # CLIP's test part has 6,085; 9,144 pictures less 102 x 30 are 6,084
            "clip": Parts(TRAIN, TEST, 3_060, 6_084),
            # torchvision knows no background class; 8,677 = 3,000 + 5,677
            "deepglint": Parts(
                Pick("train+test", Draw(3_000, order="torch_3072"), ("background",)),
                Pick("train+test", Draw(5_677, skip=3_000, order="torch_3072"), ("background",)),
                3_000,
                5_677,
            ),
        },
        Tfds("caltech101", "3.*.*", key="image/file_name"),
    ),
    ClassificationSet(
        "flowers102",
        "Flowers",
        "mean_per_class",
        {"clip": Parts(TRAIN, TEST, 1_020, 6_149, VALIDATION, 1_020)},
        Tfds("oxford_flowers102", "2.*.*"),
    ),
    ClassificationSet(
        "mnist",
        "MNIST",
        "accuracy",
        {"clip": Parts(TRAIN, TEST, 60_000, 10_000)},
        Tfds("mnist", "3.*.*"),
    ),
    ClassificationSet(
        "fer2013",
        "FER2013",
        "accuracy",
        # the sizes of the competition; the paper says 32,140 and 3,574
        {"clip": Parts(TRAIN, TEST, 28_709, 3_589, VALIDATION, 3_589)},
        get="https://www.kaggle.com/datasets/msambare/fer2013",
    ),
    ClassificationSet(
        "stl10",
        "STL10",
        "accuracy",
        {"clip": Parts(Pick("train", Draw(100, each_class=True)), TEST, 1_000, 8_000)},
        Tfds("stl10", "1.*.*"),
    ),
    ClassificationSet(
        "eurosat",
        "EuroSAT",
        "accuracy",
        {
            "clip": Parts(
                Pick("train", Draw(1_000, each_class=True)),
                Pick("train", Draw(500, skip=1_000, each_class=True)),
                10_000,
                5_000,
            )
        },
        Tfds("eurosat", "2.*.*", config="rgb"),
    ),
    ClassificationSet(
        "resisc45",
        "RESISC45",
        "accuracy",
        {
            "clip": Parts(
                Pick("train", Draw(70, each_class=True)),
                Pick("train", Draw(560, skip=70, each_class=True)),
                3_150,
                25_200,
            )
        },
        Tfds(
            "resisc45",
            "3.*.*",
            manual="https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs",
        ),
    ),
    ClassificationSet(
        "gtsrb",
        "GTSRB",
        "accuracy",
        {"clip": Parts(TRAIN, TEST, 26_640, 12_630)},
        layout="gtsrb",
        get="https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/published-archive.html",
        match="order",
    ),
    ClassificationSet(
        "kitti_distance",
        "KITTI",
        "accuracy",
        {"clip": Parts(TRAIN, TEST, 6_347, 711, VALIDATION, 423)},
        Tfds("kitti", "3.*.*", derive="kitti_distance"),
        match="order",
    ),
    ClassificationSet(
        "country211",
        "Country211",
        "accuracy",
        # the paper says 43,200; 211 x (150 + 50) are 42,200
        {"clip": Parts(TRAIN, TEST, 31_650, 21_100, VALIDATION, 10_550)},
        get="https://github.com/openai/CLIP/blob/main/data/country211.md",
        match="order",  # the folders' ISO 3166 codes, sorted
    ),
    ClassificationSet(
        "patch_camelyon",
        "PCam",
        "accuracy",
        {"clip": Parts(TRAIN, TEST, 262_144, 32_768, VALIDATION, 32_768)},
        Tfds("patch_camelyon", "2.*.*"),
        match="order",
    ),
    ClassificationSet(
        "ucf101",
        "UCF101",
        "accuracy",
        # the paper says 1,794 for the test part; official split 1, which 9,537 are of, has 3,783
        {"clip": Parts(TRAIN, TEST, 9_537, 3_783)},
        get="https://www.crcv.ucf.edu/data/UCF101.php (split 1, the middle frame of each video)",
    ),
    ClassificationSet(
        "kinetics700",
        "Kinetics700",
        "top_1_5",
        {"clip": Parts(TRAIN, VALIDATION, 494_801, 31_669)},
        get="https://github.com/cvdfoundation/kinetics-dataset (the middle frame of each video)",
    ),
    ClassificationSet(
        "clevr_counts",
        "CLEVR",
        "accuracy",
        {"clip": Parts(Pick("train", Draw(2_000)), Pick("validation", Draw(500)), 2_000, 500)},
        Tfds("clevr", "3.*.*", derive="clevr_counts"),
    ),
    ClassificationSet(
        "hateful_memes",
        "HatefulMemes",
        "roc_auc",
        {"clip": Parts(TRAIN, VALIDATION, 8_500, 500)},
        layout="hateful_memes",
        get="https://ai.meta.com/tools/hatefulmemes/",
        match="order",
    ),
    ClassificationSet(
        "rendered_sst2",
        "SST2",
        "accuracy",
        {"clip": Parts(TRAIN, TEST, 6_920, 1_821, VALIDATION, 872)},
        get="https://github.com/openai/CLIP/blob/main/data/rendered-sst2.md",
    ),
    ClassificationSet(
        "imagenet",
        "ImageNet",
        "accuracy",
        {"clip": Parts(TRAIN, VALIDATION, 1_281_167, 50_000)},
        Tfds(
            "imagenet2012",
            "5.*.*",
            manual="ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar of https://image-net.org",
        ),
        match="order",  # WordNet ids, sorted
    ),
)

CLASSIFICATION = MappingProxyType({row.name: row for row in _ROWS})
LINEAR_PROBE = tuple(CLASSIFICATION)

# RWKV-CLIP's table of zero-shot classification, in its order.
ZERO_SHOT = (
    "cifar10",
    "cifar100",
    "food101",
    "pets",
    "flowers102",
    "sun397",
    "cars",
    "dtd",
    "caltech101",
    "aircraft",
    "imagenet",
)
