"""Sphinx's settings for the documentation site, which `make docs` builds from the whole repository.

Its pages are the Markdown files as they are, and those of docs/api and docs/models, which
`write_pages` generates.
"""

import csv
import inspect
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from docutils import nodes
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sphinx import addnodes
from sphinx.application import Sphinx

import gnws_d2.model_zoo
from gnws_d2.checkpoint.structure import build_on_meta
from gnws_d2.config import add_gnws_config
from gnws_d2.model_zoo.published import find
from gnws_d2.projects.acceleration import add_acceleration_config

DOCS = Path(__file__).parent
MODULES = ("checkpoint", "config", "data", "engine", "errors", "layers", "model_zoo", "modeling")
PROJECTS = ("acceleration", "digits", "export", "own_data", "report")
# Described on the page of another module that exports them too.
ELSEWHERE = {"gnws_d2": "StandardizationReport", "gnws_d2.checkpoint": "CheckpointError"}
# What gnws_d2 imports on its first use.
LAZY = ("train", "evaluate", "predict", "export", "load_lazy_config")
CLASSES = ("gnws_d2.projects.detection.train_net.Outcome", "gnws_d2.Predictor")

project = "gnws_d2"
html_title = f"gnws_d2 {gnws_d2.__version__}"
html_theme = "furo"
html_copy_source = html_show_copyright = False
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["*.md", "docs/*.md", "docs/*/*.md", "projects/*/README.md"]
root_doc = "README"
smartquotes = False  # quotes belong to values of configs
myst_heading_anchors = 4
napoleon_use_ivar = True
autodoc_inherit_docstrings = False  # of torch.nn.Module.forward and the like
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88


def contents(caption: str, *pages: str) -> str:
    """A list of pages for the sidebar."""
    options = (":hidden:", ":glob:", f":caption: {caption}")
    return "\n".join(["\n```{toctree}", *options, *pages, "```"])


GUIDE = ["installation", "own-data", "training", "small-gpus"]
GUIDE += ["own-model", "checkpoints", "export", "gpu"]
API = ("Python API <docs/api/gnws_d2>", "docs/api/config-keys")
EVIDENCE = sorted(file.stem for file in DOCS.glob("*.md") if file.stem not in GUIDE)
# What the site shows of these pages in its sidebar.
SIDEBAR = {
    "README": contents("Guide", *(f"docs/{name}" for name in GUIDE))
    + contents("Reference", "MODEL_ZOO", *API, "Programs, contributing <CONTRIBUTING>", "CHANGELOG")
    + contents("Evidence", *(f"docs/{name}" for name in EVIDENCE)),
    "MODEL_ZOO": contents("Model cards", "docs/models/*"),
    "docs/api/gnws_d2": contents("Modules", "gnws_d2.*"),
    "CONTRIBUTING": contents("Programs", "projects/*/README"),
}


def model_cards() -> Iterator[tuple[str, str]]:
    """The name of a page in docs/ and its text, for each published detector."""
    jinja = Environment(loader=FileSystemLoader(DOCS), undefined=StrictUndefined)
    template = jinja.get_template("model_card.jinja")
    zoo = Path(gnws_d2.model_zoo.__file__).with_name("checkpoints.csv")
    for row in csv.DictReader(zoo.read_text(encoding="utf-8").splitlines()):
        if row["box_ap"]:
            cfg, stem = gnws_d2.model_zoo.get_config(row["config"]), Path(row["config"]).stem
            parameters = sum(p.numel() for p in build_on_meta(cfg).parameters())
            facts = {"cfg": cfg, "entry": find(row["name"]), "stem": stem}
            yield f"models/{stem}.md", template.render(row=row, parameters=parameters, **facts)


def api_pages() -> Iterator[tuple[str, str]]:
    """The same for each module, of what it exports, and for the config keys."""
    options = ["   :members:", "   :show-inheritance:"]
    for module in ("", *MODULES, *(f"projects.{name}" for name in PROJECTS)):
        name = f"gnws_d2.{module}".rstrip(".")
        lines = [f".. automodule:: {name}", *options]
        if name in ELSEWHERE:
            lines.append(f"   :exclude-members: {ELSEWHERE[name]}")
        if name == "gnws_d2":
            lines += [f".. autofunction:: {name}.{function}" for function in LAZY]
            lines += [line for cls in CLASSES for line in (f".. autoclass:: {cls}", *options)]
        yield f"api/{name}.md", "\n".join([f"# {name}", "```{eval-rst}", *lines, "```"])
    keys = [*config_keys(add_gnws_config), *config_keys(add_acceleration_config)]
    origin = "Those from MODEL.GN.FUSE_RELU on are of [Acceleration](../../projects/Acceleration)."
    yield "api/config-keys.md", "\n\n".join(["# Config keys", origin, *keys])


def config_keys(add_config: Callable[..., None]) -> Iterator[str]:
    """A section for the keys that ``add_config`` adds under one comment, with their defaults."""
    comment: list[str] = []
    keys: dict[str, str] = {}
    for line in [*map(str.strip, inspect.getsource(add_config).splitlines()), "#"]:
        if line.startswith("#"):
            if keys:
                defaults = "  \n".join(f"`{key}: {value}`" for key, value in keys.items())
                yield f"## {' and '.join(keys)}\n\n{defaults}\n\n{' '.join(comment)}"
                comment, keys = [], {}
            comment.append(line[2:])
        elif line.startswith("cfg.") and " = " in line and "CfgNode()" not in line:
            key, _, value = line.removeprefix("cfg.").partition(" = ")
            keys[key] = value


def write_pages(app: Sphinx) -> None:
    for name, text in (*model_cards(), *api_pages()):
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(text, encoding="utf-8")


def add_sidebar(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] += SIDEBAR.get(page, "")


def resolve_links(app: Sphinx, document: nodes.document) -> None:
    """Lead links to a folder to its README, and those to a published config to the model's card."""
    page = app.env.docname
    for kind in (addnodes.pending_xref, addnodes.download_reference):
        for link in list(document.findall(kind)):
            path = Path(app.srcdir, page).parent / link["reftarget"]
            if link.get("reftype") != "myst" or link["refdomain"] is not None:
                continue
            target = f"docs/models/{path.stem}"
            if path.is_dir():
                target = app.env.path2doc(str(path.resolve() / "README.md"))
            if target in app.env.found_docs and target != page:
                found = {"refdomain": "doc", "reftarget": target, "reftargetid": None}
                attributes = {**link.attributes, **found}
                link.replace_self(addnodes.pending_xref("", *link.children, **attributes))
            elif path.is_dir():
                link.replace_self(link.children)


def copy_home(app: Sphinx, error: Exception | None) -> None:
    """Make README.html the page that the folder's address opens."""
    if error is None:
        shutil.copy(app.outdir / "README.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_pages)
    app.connect("source-read", add_sidebar)
    app.connect("doctree-read", resolve_links, priority=100)  # before Sphinx copies linked files
    app.connect("build-finished", copy_home)
