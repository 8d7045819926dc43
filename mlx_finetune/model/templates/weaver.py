"""The bounds of ``bounds`` woven into a parsed template, as filters around its nodes.

Filters are looked up by the compiler, so a template cannot shadow one: ``_tick`` takes work from the budget,
``_weighed`` measures what was just built, ``_compared`` what is about to be compared, ``_joined`` joins texts and
``_added`` adds up a whole chain ``a + b + c`` at once: one call where there were as many as signs.
"""

from typing import cast

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

TURN_WORK = 200
_NODE_WORK = 4


class Weaver(NodeTransformer):
    """Puts the bounds into a template: ticks into loops and macros, weights on what it builds and compares."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """The loop with a tick at the start of each turn, and of each turn that its ``if`` leaves out."""
        work = _work_of(node)
        self.generic_visit(node)
        if node.test is not None:
            node.test = _filtered(cast(nodes.Expr, node.test), "_tick")
        node.body.insert(0, _tick(work, node.lineno))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        """The macro with a tick at the start of each call; a call takes as long as some turns of a loop."""
        work = 4 * TURN_WORK + _work_of(node)
        self.generic_visit(node)
        node.body.insert(0, _tick(work, node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """The texts joined with ``~``."""
        self.generic_visit(node)
        first, *others = node.nodes
        return nodes.Filter(first, "_joined", others, [], None, None).set_lineno(node.lineno)

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        """The values added from left to right; all of them are looked up before the first two are added."""
        operands: list[nodes.Expr] = [node.right]
        first = node.left
        while isinstance(first, nodes.Add):
            operands.append(first.right)
            first = first.left
        first, *others = [self._visited(operand) for operand in (first, *reversed(operands))]
        return nodes.Filter(first, "_added", others, [], None, None).set_lineno(node.lineno)

    def _visited(self, node: nodes.Expr) -> nodes.Expr:
        return cast(nodes.Expr, self.visit(node))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """The comparison with each side paid for."""
        self.generic_visit(node)
        node.expr = _unless_constant(node.expr, "_compared")
        for operand in node.ops:
            operand.expr = _unless_constant(operand.expr, "_compared")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """A slice is a copy; a tuple as a key is hashed."""
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _filtered(node, "_weighed")
        node.arg = _unless_constant(node.arg, "_compared") if not isinstance(node.arg, nodes.Name) else node.arg
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        """A list, weighed."""
        self.generic_visit(node)
        return _unless_constant(node, "_weighed")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        """A tuple, weighed, unless it is assigned to."""
        self.generic_visit(node)
        return _unless_constant(node, "_weighed") if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        """A dictionary, weighed."""
        self.generic_visit(node)
        return _unless_constant(node, "_weighed")

    def visit_Name(self, node: nodes.Name) -> nodes.Node:
        """The containers that Jinja makes for a macro, weighed."""
        return _filtered(node, "_weighed") if node.name in ("varargs", "kwargs") and node.ctx == "load" else node


def _work_of(node: nodes.Node) -> int:
    """What one turn of a body costs: its parts, and the text that stands in it."""
    text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
    return TURN_WORK + _NODE_WORK * sum(1 for _ in node.find_all(nodes.Node)) + text


def _tick(work: int, line: int) -> nodes.Node:
    filter_ = nodes.Filter(nodes.Const(None), "_tick", [nodes.Const(work)], [], None, None)
    return nodes.ExprStmt(filter_).set_lineno(line, override=True)


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    """``node|name``; filters are looked up by the compiler, so a template cannot shadow one."""
    made = nodes.Filter(node, name, [], [], None, None)
    made.set_lineno(node.lineno)
    return made


def _unless_constant(node: nodes.Expr, name: str) -> nodes.Expr:
    children = list(node.iter_child_nodes())
    is_constant = isinstance(node, nodes.Const) or (
        isinstance(node, nodes.List | nodes.Tuple | nodes.Dict)
        and all(isinstance(one, nodes.Const | nodes.Pair) for one in children)
        and all(isinstance(one, nodes.Const) for pair in children for one in pair.iter_child_nodes())
    )
    return node if is_constant else _filtered(node, name)
