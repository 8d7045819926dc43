"""The shape of the package: who may import whom, what costs an import, how long a module or a function may be."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "mlx_finetune"

FOUNDATION = {"errors", "durable", "events", "events_log", "journal", "units", "rundir"}
RECIPE = FOUNDATION | {"recipe"}
DATA = RECIPE | {"dataset"}
MODELS = DATA | {"model", "hardware"}

#: Part of the package -> the other parts it may import, at module level or inside a function.
ALLOWED = {
    "errors": FOUNDATION,
    "durable": FOUNDATION,
    "events": FOUNDATION,
    "events_log": FOUNDATION,
    "journal": FOUNDATION,
    "units": FOUNDATION,
    "rundir": FOUNDATION,
    "recipe": FOUNDATION,
    "scoring": FOUNDATION,
    "loopback": FOUNDATION,
    "dataset": RECIPE,
    "model": DATA | {"scoring"},
    "hardware": DATA,
    "train": MODELS | {"scoring"},
    "monitor": DATA | {"scoring", "loopback"},
    "app": MODELS | {"scoring", "loopback", "train.losses"},
    "commands": MODELS | {"scoring", "loopback", "app", "train", "monitor", "cli"},
    "cli": MODELS | {"app", "train", "monitor", "commands"},
    "__main__": {"cli"},
    "": RECIPE | {"app.updates.series"},  # load_series, for other programs
}
#: Third-party package -> the parts that may import it anywhere.
MAY_IMPORT = {
    "mlx": {"model", "hardware", "train", "app", "commands"},
    "mlx_lm": {"model"},
    "transformers": {"model"},
}
HEAVY = {"mlx", "mlx_lm", "transformers"}
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 50


@dataclass(frozen=True, slots=True)
class Import:
    importer: str  # dotted, without the package's own name: "train.loop"; "" is the package itself
    target: str  # dotted; own modules without the package's name, others as written
    is_own: bool
    at_load: bool  # executed when the importer is imported: not inside a function, not under TYPE_CHECKING
    line: int


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def find_imports(name: str, tree: ast.AST, own: set[str]) -> Iterator[Import]:
    """Every import statement of one module, wherever it stands."""
    stack: list[tuple[ast.AST, bool]] = [(tree, True)]
    while stack:
        node, at_load = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_load = False
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            stack += [(child, False) for child in node.body] + [(child, at_load) for child in node.orelse]
            continue
        stack += [(child, at_load) for child in ast.iter_child_nodes(node)]
        for target in _targets(node, own):
            is_own = target == "mlx_finetune" or target.startswith("mlx_finetune.")
            short = target.removeprefix("mlx_finetune").lstrip(".") if is_own else target
            yield Import(name, short, is_own, at_load, getattr(node, "lineno", 0))


def _targets(node: ast.AST, own: set[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import; write the whole name"
        module = node.module or ""
        full = [f"{module}.{alias.name}" for alias in node.names]
        return [name if name.removeprefix("mlx_finetune.") in own else module for name in full]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        first = node.args[0]
        return [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
    return []


IMPORTS = [found for name, tree in TREES.items() for found in find_imports(name, tree, set(MODULES))]


def part_of(module: str) -> str:
    return module.split(".")[0]


def bad_edges(imports: list[Import]) -> list[str]:
    """``importer:line imports target`` for every import of our own that ``ALLOWED`` does not list."""
    bad: list[str] = []
    for found in imports:
        source, target = part_of(found.importer), part_of(found.target)
        if not found.is_own or source == target:
            continue
        allowed = ALLOWED.get(source, set())
        if target not in allowed and found.target not in allowed and found.target != "":
            bad.append(f"{found.importer}:{found.line} imports {found.target}")
    return bad


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring, or an empty list."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(edges.get(name, ())):
            if ring := visit(target, [*path, name]):
                return ring
        done.add(name)
        return []

    return next((ring for name in sorted(edges) if (ring := visit(name, []))), [])


def own_edges(imports: list[Import], *, at_load_only: bool) -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {}
    for found in imports:
        if found.is_own and found.target and found.importer and (found.at_load or not at_load_only):
            edges.setdefault(found.importer, set()).add(found.target)
    return edges


def heavy_path(start: str, imports: list[Import]) -> str:
    """How importing ``start`` comes to import mlx, mlx_lm or transformers: ``a -> b -> mlx``, or an empty string."""
    edges = own_edges(imports, at_load_only=True)
    paths, seen = [[start]], {start}
    while paths:
        path = paths.pop()
        for found in imports:
            if found.importer == path[-1] and found.at_load and not found.is_own and part_of(found.target) in HEAVY:
                return " -> ".join([*path, found.target])
        for target in sorted(edges.get(path[-1], set()) - seen):
            seen.add(target)
            paths.append([*path, target])
    return ""


def test_every_part_of_the_package_has_its_place_in_the_layers():
    assert {part_of(name) for name in MODULES} <= set(ALLOWED)


def test_imports_go_downwards_only():
    assert bad_edges(IMPORTS) == []


def test_no_module_imports_itself_in_a_ring():
    assert find_cycle(own_edges(IMPORTS, at_load_only=False)) == []


def test_the_foundation_needs_the_standard_library_only():
    foreign = [
        f"{found.importer}:{found.line} imports {found.target}"
        for found in IMPORTS
        if part_of(found.importer) in FOUNDATION and not found.is_own
        if part_of(found.target) not in sys.stdlib_module_names
    ]
    assert foreign == []


def test_mlx_and_its_relatives_are_imported_only_where_they_belong():
    misplaced = [
        f"{found.importer}:{found.line} imports {found.target}"
        for found in IMPORTS
        if not found.is_own and part_of(found.target) in MAY_IMPORT
        if part_of(found.importer) not in MAY_IMPORT[part_of(found.target)]
    ]
    assert misplaced == []


LIGHT = [
    name
    for name in MODULES
    if part_of(name) in DATA | {"", "scoring", "loopback", "cli", "__main__", "monitor", "commands"}
] + [
    "hardware.planning.memory",
    "hardware.blas",
]


@pytest.mark.parametrize("name", LIGHT)
def test_importing_a_light_module_does_not_import_mlx(name: str):
    assert name in MODULES
    assert heavy_path(name, IMPORTS) == ""


def test_no_module_is_longer_than_the_ceiling():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > MAX_MODULE_LINES} == {}


def test_no_function_is_longer_than_the_ceiling():
    long = [
        f"{name}:{node.lineno} {node.name}: {length} lines"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_inner_init_files_hold_one_docstring_and_nothing_else():
    fuller = [
        name
        for name, path in MODULES.items()
        if path.name == "__init__.py" and name and (len(TREES[name].body) != 1 or not ast.get_docstring(TREES[name]))
    ]
    assert fuller == []


def test_every_module_says_what_it_does():
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []


# The checks above are worth what they can find: each is shown one thing that is wrong.


def check(name: str, code: str) -> list[Import]:
    return list(find_imports(name, ast.parse(code), {"train.losses", "train.loop", "units", "model.load"}))


@pytest.mark.parametrize(
    ("importer", "code"),
    [
        ("units", "from mlx_finetune.train import loop"),
        ("recipe.load", "def f():\n    from mlx_finetune.dataset.read import Row"),
        ("model.load", "import mlx_finetune.hardware.device"),
        ("hardware.tune", "from mlx_finetune.model.load import load_model"),
        ("monitor.plain", "import importlib\nimportlib.import_module('mlx_finetune.train.loop')"),
        ("app.evaluate", "from mlx_finetune.train.loop import run"),
        ("train.loop", "from mlx_finetune.monitor.plain import draw"),
    ],
)
def test_an_upward_or_sideways_import_is_found_wherever_it_stands(importer: str, code: str):
    assert len(bad_edges(check(importer, code))) == 1


def test_the_one_listed_exception_is_allowed():
    assert bad_edges(check("app.evaluate", "from mlx_finetune.train.losses import cross_entropy")) == []


def test_a_ring_is_found():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_price_of_an_import_is_found_through_other_modules():
    through = check("units", "from mlx_finetune.model.load import x") + check("model.load", "import mlx.core as mx")
    assert heavy_path("units", through) == "units -> model.load -> mlx.core"
    inside = check("units", "def f():\n    from mlx_finetune.model.load import x") + through[1:]
    assert heavy_path("units", inside) == ""
