"""Configs that are damaged, hostile or mistaken.

Detectron2 decides what is valid: a config that it merges must come out the same here, or be refused
because a key of this package, or the model, cannot work. The model is built without memory.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import get_cfg
from trials import accepted, damage, trials, unmade

from gnws_d2 import load_config
from gnws_d2.checkpoint.structure import build_on_meta
from gnws_d2.config import CONFIG_ROOT, add_gnws_config, get_config_file, leaves

NAMES = (
    "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml",
    "Digits/mask_rcnn_R_18_FPN_bcn_ws.yaml",
    "Digits/retinanet_R_18_FPN_gn_ws.yaml",
    "Digits/semantic_R_18_FPN_gn_ws.yaml",
    "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml",
)
# No large numbers: a model of a million layers is what the config says.
VALUES: tuple[Any, ...] = (
    *(None, {}, [], "", "x", "None", "()", "(", "[1, 'a']", True, False),
    *(-1, 0, 1, 2, 3, 17, 48, -0.5, 0.5, 1.5),
    *(float("nan"), float("inf"), -float("inf"), "1e999", "-" * 5000 + "1", "\0", "\x1b[2J"),
    *([None], [{}], [[]], [1, "a"], ["a"], [-1], [0], [float("nan")], [1, 2, 3], "x" * 5000),
    *({"A": 1}, {"NAME": None}, "2020-01-01", "!!python/name:os.system", "../../x", "9" * 4000),
)
# What this package takes and Detectron2 does not: 12 for 12.0, a dataset's name for a tuple of it.
TAKEN = (f"({float} vs. {int})", f"({tuple} vs. {str})")


def keys(name: str) -> list[str]:
    return [key for key, _ in leaves(load_config(name)) if key != "MODEL.DEVICE"]


def use(file: Path, opts: Sequence[str] = ()) -> str:
    """Read, compare with what Detectron2 reads, and build."""
    cfg = load_config(file, opts)
    build_on_meta(cfg)
    expected = get_cfg()
    add_gnws_config(expected)
    try:
        expected.merge_from_file(str(file), allow_unsafe=False)
        expected.merge_from_list(list(opts))
    except Exception as error:
        is_known = any(types in str(error) for types in TAKEN)
        if isinstance(error, FileNotFoundError):  # a packaged config is a base by its name, too
            is_known = any(CONFIG_ROOT.rglob(Path(error.filename).name))
        return "" if is_known else f"accepted, but Detectron2 refuses it: {error}"[:300]
    expected.MODEL.DEVICE = cfg.MODEL.DEVICE  # "cpu" where no GPU is
    # As text: NaN differs from itself.
    return "" if str(cfg) == str(expected) else "not what Detectron2 reads"


def write(folder: Path, name: str, content: dict[Any, Any]) -> Path:
    """A file based on the packaged config ``name``."""
    file = folder / "config.yaml"
    content = {"_BASE_": get_config_file(name), **content}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


@trials(60, "good configs")
def good(rng: random.Random, folder: Path) -> str:
    """All that a config says, with a few good changes: it has to be read."""
    cfg = load_config(rng.choice(NAMES))
    rates = [key for key in cfg.SOLVER if isinstance(cfg.SOLVER[key], float)]
    for key in rng.sample(rates, 3):
        cfg.SOLVER[key] *= 2
    (folder / "config.yaml").write_text(cfg.dump())
    with accepted():
        return use(folder / "config.yaml")


@trials(150, "damaged files")
def damaged(rng: random.Random, folder: Path) -> str:
    """Bytes of a packaged config changed, removed, repeated or added."""
    file = Path(get_config_file(rng.choice(NAMES)))
    content = file.read_bytes().replace(b'_BASE_: "', f'_BASE_: "{file.parent}/'.encode())
    marks = (b"&a ", b"*a ", b"{", b"[", b"!!set ", b": ", b"- ", b"\t")
    (folder / "config.yaml").write_bytes(damage(rng, content, marks))
    return use(folder / "config.yaml")


@trials(300, "values")
def value(rng: random.Random, folder: Path) -> str:
    """A key of any kind with a value of any kind, in a file or on the command line."""
    name = rng.choice(NAMES)
    key, value = rng.choice(keys(name)), rng.choice(VALUES)
    if rng.random() < 0.5:
        return use(write(folder, name, {}), [key, str(value)])
    return use(write(folder, name, nested(key, value)))


def misspelled(rng: random.Random, text: str) -> str:
    i = rng.randrange(len(text))
    return text[:i] + rng.choice(("", text[i] * 2, "x", ".", " ", text[i].lower())) + text[i + 1 :]


@trials(120, "keys")
def key(rng: random.Random, folder: Path) -> str:
    """A key that is misspelled, a section, a number, written with dots, or without a value."""
    name = rng.choice(NAMES)
    key = rng.choice(keys(name))
    wrong = misspelled(rng, key)
    if rng.random() < 0.3:
        return use(write(folder, name, {}), rng.choice(([wrong, "1"], [key], [key, "1", "x"])))
    contents = (
        nested(wrong, 1),
        nested(key.rpartition(".")[0] or key, rng.choice(VALUES)),
        {rng.choice((1, None, True, 1.5, "")): 1},
        {key: 1},
        nested(f"{key}.MORE", 1),
    )
    return use(write(folder, name, rng.choice(contents)))


@trials(80, "names of components")
def component(rng: random.Random, folder: Path) -> str:
    """The name of a component, changed or of another kind of component."""
    name = rng.choice(NAMES)
    parts = leaves(load_config(name))
    named = {k: v for k, v in parts if k.endswith((".NAME", "_NAME", "META_ARCHITECTURE"))}
    known = sorted(set(map(str, named.values())))
    key = rng.choice(sorted(named))
    value = rng.choice([misspelled(rng, named[key] or "x"), rng.choice(known), "", "Mine"])
    return use(write(folder, name, nested(key, value)))


@trials(60, "bases")
def base(rng: random.Random, folder: Path) -> str:
    """Up to five files that are based on each other in any way."""
    names = [f"{letter}.yaml" for letter in "abcde"[: rng.randint(1, 5)]]
    packaged = [get_config_file(name) for name in NAMES]
    for name in names:
        bases: Any = rng.sample([*names, *packaged, "none.yaml", "a/b.yaml"], rng.randint(0, 2))
        if rng.random() < 0.1:
            bases = rng.choice(VALUES)
        content = {} if bases == [] else {"_BASE_": bases}
        (folder / name).write_text(yaml.safe_dump({**content, "SEED": rng.randrange(100)}))
    return use(folder / names[0])


@trials(60, "tags")
def tag(rng: random.Random, folder: Path) -> str:
    """Tags that run Python, at any place and with any depth of brackets."""
    kind = rng.choice(("object/apply:os.mkdir", "object/new:os.mkdir", "name:os.system", "tuple"))
    key = rng.choice(("OUTPUT_DIR", "_BASE_", "UNKNOWN", "? []"))
    depth = rng.choice((0, 0, 1, 100, 100_000))
    line = f"{key}: {'[' * depth}!!python/{kind} ['{folder / 'made'}']{']' * depth}"
    (folder / "config.yaml").write_text(line)
    with unmade(folder / "made"):
        return use(folder / "config.yaml")
