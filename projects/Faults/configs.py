"""Configs that are damaged, hostile or mistaken: read, compared with what the file says, and built
without memory."""

from __future__ import annotations

import ast
import functools
import random
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from trials import Trial, Wrong

from gnws_d2 import load_config
from gnws_d2.checkpoint.structure import build_on_meta
from gnws_d2.config import get_config_file, leaves
from gnws_d2.errors import ConfigError

NAMES = (
    "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml",
    "Digits/mask_rcnn_R_18_FPN_bcn_ws.yaml",
    "Digits/retinanet_R_18_FPN_gn_ws.yaml",
    "Digits/semantic_R_18_FPN_gn_ws.yaml",
    "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml",
)
VALUES: tuple[Any, ...] = (
    *(None, {}, [], "", "x", "None", "()", "(", "[1, 'a']", True, False),
    *(-1, 0, 1, 2, 3, 17, 48, 10**6, 10**12, 10**30, -0.5, 0.5, 1.5),
    *(float("nan"), float("inf"), -float("inf"), "1e999", "-" * 5000 + "1", "\0", "\x1b[2J"),
    *([None], [{}], [[]], [1, "a"], ["a"], [-1], [0], [float("nan")], (1, 2, 3), "x" * 5000),
    *({"A": 1}, {"NAME": None}, "2020-01-01", "!!python/name:os.system", "../../x", "9" * 4000),
)


@functools.cache
def keys(name: str) -> tuple[str, ...]:
    return tuple(key for key, _ in leaves(load_config(name)) if key != "MODEL.DEVICE")


def read(file: Path) -> str:
    """Read, compare and build."""
    cfg = load_config(file)
    with file.open("rb") as stream:
        compare(yaml.safe_load(stream), cfg)
    build_on_meta(cfg)
    return ""


def compare(stated: dict[str, Any], cfg: CfgNode, prefix: str = "") -> None:
    for key, value in stated.items():
        full = f"{prefix}{key}"
        if full in ("_BASE_", "MODEL.DEVICE"):
            continue
        if isinstance(value, dict):
            compare(value, cfg[key], f"{full}.")
        elif plain(value) != plain(cfg[key]) and not is_name_of(value, cfg[key], full):
            raise Wrong(f"{full} is {cfg[key]!r}, the file says {value!r}"[:300])


def is_name_of(value: Any, found: Any, key: str) -> bool:
    """One dataset's name stands for a tuple of it."""
    return key.startswith("DATASETS.") and found == (value,)


def plain(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)  # as yacs reads a text
        except (ValueError, SyntaxError):
            return value
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def write(folder: Path, content: dict[str, Any]) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def damaged(rng: random.Random, folder: Path) -> str:
    """Bytes of a packaged config changed, removed, repeated or added."""
    name = rng.choice(NAMES)
    file = Path(get_config_file(name))
    base = f'_BASE_: "{file.parent}/'.encode()
    content = bytearray(file.read_bytes().replace(b'_BASE_: "', base))
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(content))
        j = min(len(content), i + rng.choice((1, 1, 5, 50)))
        match rng.randrange(5):
            case 0:
                content[i] = rng.randrange(256)
            case 1:
                content[i] ^= 1 << rng.randrange(8)
            case 2:
                del content[i:j]
            case 3:
                content[i:i] = content[i:j] * rng.choice((1, 2, 100))
            case 4:
                content[i:i] = rng.choice(
                    (b"&a ", b"*a ", b"{", b"[", b"!!set ", b": ", b"- ", b"\t")
                )
        content = content or bytearray(b" ")
    (folder / "config.yaml").write_bytes(content)
    return read(folder / "config.yaml")


def good(rng: random.Random, folder: Path) -> str:
    """What a config says already, and a few good changes: it has to be read."""
    name = rng.choice(NAMES)
    known = dict(leaves(load_config(name)))
    content: dict[str, Any] = {}
    for key in rng.sample(sorted(known), 20):
        value = known[key]
        if key.startswith("SOLVER.") and isinstance(value, float) and value < 0.1:
            value *= 2
        node = content
        *sections, last = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = str(value) if isinstance(value, tuple) else value
    try:
        return read(write(folder, {"_BASE_": name, **content}))
    except ConfigError as error:
        raise Wrong(f"refused: {error}") from error


def value(rng: random.Random, folder: Path) -> str:
    """A key of any kind with a value of any kind."""
    name = rng.choice(NAMES)
    stated = nested(rng.choice(keys(name)), rng.choice(VALUES))
    stated = yaml.safe_load(yaml.safe_dump(_listed(stated)))
    return read(write(folder, {"_BASE_": name, **stated}))


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(v) for key, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def override(rng: random.Random, folder: Path) -> str:
    """The same on the command line."""
    name = rng.choice(NAMES)
    opts = []
    for _ in range(rng.randint(1, 3)):
        key, value = rng.choice(keys(name)), str(rng.choice(VALUES))
        opts += [key if rng.random() < 0.8 else _misspelled(rng, key), value]
    opts = opts if rng.random() < 0.95 else opts[:-1]
    cfg = load_config(name, opts)
    for key, value in dict(zip(opts[::2], opts[1::2], strict=True)).items():
        node: Any = cfg
        for word in key.split("."):
            node = node[word]
        if plain(value) != plain(node) and not is_name_of(value, node, key):
            return f"{key} is {node!r}, the command line says {value!r}"[:300]
    build_on_meta(cfg)
    return ""


def _misspelled(rng: random.Random, text: str) -> str:
    i = rng.randrange(len(text))
    return text[:i] + rng.choice(("", text[i] * 2, "x", ".", " ", text[i].lower())) + text[i + 1 :]


def key(rng: random.Random, folder: Path) -> str:
    """A key that is misspelled, a section, a number, or written with dots."""
    name = rng.choice(NAMES)
    key = rng.choice(keys(name))
    words = key.split(".")
    content: dict[Any, Any] = {"_BASE_": name}
    match rng.randrange(5):
        case 0:
            content |= nested(_misspelled(rng, key), 1)
        case 1:
            content |= nested(
                ".".join(words[: rng.randint(1, len(words))]), rng.choice(VALUES[:14])
            )
        case 2:
            content |= {rng.choice((1, None, True, 1.5, "")): 1}
        case 3:
            content |= {key: 1}
        case 4:
            content |= nested(f"{key}.MORE", 1)
    return read(write(folder, content))


def component(rng: random.Random, folder: Path) -> str:
    """The name of a component, changed or of another kind of component."""
    name = rng.choice(NAMES)
    cfg = load_config(name)
    named = {k: v for k, v in leaves(cfg) if k.endswith((".NAME", "_NAME", "META_ARCHITECTURE"))}
    known = sorted(set(map(str, named.values())))
    key = rng.choice(sorted(named))
    value = rng.choice([_misspelled(rng, named[key] or "x"), rng.choice(known), "", "Mine"])
    return read(write(folder, {"_BASE_": name, **nested(key, value)}))


def base(rng: random.Random, folder: Path) -> str:
    """Up to five files that are based on each other in any way."""
    names = [f"{letter}.yaml" for letter in "abcde"[: rng.randint(1, 5)]]
    for name in names:
        bases: Any = rng.sample([*names, *NAMES, "none.yaml", "a/b.yaml"], rng.randint(0, 2))
        if rng.random() < 0.1:
            bases = rng.choice(VALUES)
        content = {} if bases == [] else {"_BASE_": _listed(bases)}
        (folder / name).write_text(yaml.safe_dump({**content, "SEED": rng.randrange(100)}))
    return read(folder / names[0])


def bomb(rng: random.Random, folder: Path) -> str:
    """Aliases of aliases, nested brackets, and tags."""
    wide, deep = rng.randint(2, 30), rng.randint(1, 40)
    match rng.randrange(6):
        case 0:
            lines = ["a0: &a0 [1, 1]"]
            lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * wide)}]" for i in range(1, deep)]
        case 1:
            lines = ["a0: &a0 {x: 1}"]
            for i in range(1, deep):
                pairs = ", ".join(f"k{j}: *a{i - 1}" for j in range(wide))
                lines.append(f"a{i}: &a{i} {{{pairs}}}")
        case 2:
            lines = ["a0: &a0 {x: 1}"]
            for i in range(1, deep):
                lines.append(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * wide)}]}}")
        case 3:
            size = rng.choice((10, 100, 1000, 100_000))
            opened, closed = rng.choice((("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", "")))
            lines = ["SEED: " + opened * size + "1" + closed * rng.choice((0, size))]
        case 4:
            lines = ["a: &a [*a]", "SEED: 1", "<<: *a"][: rng.randint(1, 3)]
        case _:
            tag = rng.choice(("object/apply:os.mkdir", "name:os.system", "module:os", "tuple"))
            lines = [f"OUTPUT_DIR: !!python/{tag} ['{folder / 'made'}']"]
    (folder / "config.yaml").write_text("\n".join(lines))
    try:
        return read(folder / "config.yaml")
    finally:
        if (folder / "made").exists():
            raise Wrong("a tag was executed")


CLASSES: dict[str, tuple[int, Trial]] = {
    "good configs": (60, good),
    "damaged files": (150, damaged),
    "values": (200, value),
    "overrides": (100, override),
    "keys": (80, key),
    "names of components": (80, component),
    "bases": (60, base),
    "bombs and tags": (80, bomb),
}
