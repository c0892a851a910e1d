"""Which cells of a unit an exercise needs: its set-up cell, and those that define what its answer uses."""

from __future__ import annotations

import ast
import symtable

from nbformat import NotebookNode


def closure(cells: list[NotebookNode], exercise: str) -> list[NotebookNode]:
    """The code cells, in order, that must run before the answer cell of `exercise`; no check is among them.

    `cells` are all cells of the unit. What a cell uses is read from its text, so a cell that only changes an object
    that another one made is not found.
    """
    code = [cell for cell in cells if cell.cell_type == "code" and not cell.id.endswith("_check")]
    names = [_names(cell.source) for cell in code]
    last: dict[str, int] = {}
    needs: list[set[int]] = []
    for at, (defined, used, imported) in enumerate(names):
        needs.append({last[name] for name in used if name in last} | ({0} if at else set()))
        last |= dict.fromkeys(defined, at)
        last |= {name: at for name in imported if name not in last}
    answer = next(i for i, cell in enumerate(code) if cell.id == exercise)
    found, waiting = set(), [answer]
    while waiting:
        if (at := waiting.pop()) not in found:
            found.add(at)
            waiting += needs[at]
    return [code[at] for at in sorted(found - {answer})]


def _names(source: str) -> tuple[set[str], set[str], set[str]]:
    """Global names that a cell defines, that it uses before it has defined them, and that it imports."""
    defined, used, imported = set(), set(), set()
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imported |= {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
            continue
        stored, loaded = _stored_and_loaded(statement)
        used |= loaded - defined - imported
        defined |= stored
    return defined, used, imported


def _stored_and_loaded(statement: ast.stmt) -> tuple[set[str], set[str]]:
    stored, loaded = set(), set()
    _collect(symtable.symtable(ast.unparse(statement), "<cell>", "exec"), stored, loaded, True)
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        loaded.discard(statement.name)
    for name in stored & loaded:  # of a loop or a with: stored before it is read
        if _first(statement, name, ast.Store) < _first(statement, name, ast.Load):
            loaded.discard(name)
    return stored, loaded


def _collect(table: symtable.SymbolTable, stored: set[str], loaded: set[str], top: bool) -> None:
    for symbol in table.get_symbols():
        if top and (symbol.is_assigned() or symbol.is_namespace()):
            stored.add(symbol.get_name())
        if symbol.is_referenced() and (top or symbol.is_global()):
            loaded.add(symbol.get_name())
    for child in table.get_children():
        _collect(child, stored, loaded, False)


def _first(statement: ast.stmt, name: str, context: type[ast.expr_context]) -> tuple[int, int]:
    places = [
        # the target of an assignment is stored when all of it has been computed
        (node.end_lineno, 10_000 + node.col_offset) if isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign)
        and context is ast.Store else (node.lineno, 0 if context is ast.Store else node.col_offset + 1)
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, context)
    ]  # fmt: skip
    return min(places, default=(10**9, 0))
