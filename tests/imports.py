"""Which module imports which, read from the source: imports inside functions and for types too."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASES = (ROOT, ROOT / "kernels", ROOT / "plugins")


def modules():
    """Return every module that is shipped, by name, with its file."""
    found = {}
    for base in BASES:
        for package in sorted(base.glob("kvpolicy*")):
            for file in sorted(package.rglob("*.py")):
                parts = file.relative_to(base).with_suffix("").parts
                found[".".join(parts).removesuffix(".__init__")] = file
    return found


def imported(file, known=()):
    """Return the names that a file imports; a module of `known` in place of a name from it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names.update(whole & set(known) or {node.module})
    return names


def circles(graph):
    """Return the groups of modules that import each other in a circle (Tarjan's algorithm)."""
    order, low, stack, found = {}, {}, [], []

    def visit(node):
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in order:
            visit(node)
    return found
