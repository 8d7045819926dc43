"""A part of the terminal that shows lines and draws only those that have changed."""

from collections.abc import Sequence

from rich.text import Text
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget


class LinesView(Widget):
    """Lines from the top. ``show`` compares with what stands there, so that nothing flickers."""

    DEFAULT_CSS = "LinesView { width: 100%; height: 1; }"

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._shown: list[Text] = []
        self._strips: list[Strip] = []
        self._strips_width = 0

    def show(self, lines: Sequence[Text]) -> None:
        """These lines from now on, the first at the top; those below the end are drawn once there is room."""
        before, width = self._strips, self.size.width
        self._shown = list(lines)
        self._make_strips(width)
        for row in range(self.size.height):
            if (before[row : row + 1]) != self._strips[row : row + 1]:
                self.refresh(Region(0, row, width, 1))

    def _make_strips(self, width: int) -> None:
        self._strips_width = width
        self._strips = [self._strip(line, width) for line in self._shown]

    def _strip(self, line: Text, width: int) -> Strip:
        line = line.copy()
        line.end = ""
        line.truncate(width, overflow="ellipsis")
        return Strip(line.render(self.app.console)).adjust_cell_length(width)

    def render_line(self, y: int) -> Strip:
        """Called by textual for each line that has to be drawn, also after a change of size."""
        width = self.size.width
        if width != self._strips_width:
            self._make_strips(width)
        if y < len(self._strips):
            return self._strips[y].apply_style(self.rich_style)
        return Strip.blank(width, self.rich_style)
