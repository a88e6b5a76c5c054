"""Line plots are well formed SVG that takes the colours of the page."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from ldm.evaluation.plots import Band, Line, line_plot, running_mean


def test_a_plot_is_well_formed_and_takes_the_page_s_colour() -> None:
    line = Line(list(range(60)), list(np.sin(np.arange(60))), "norm of <*>", smooth=5)
    svg = line_plot([line], x_label="step", y_label="norm", bands=[Band(0, 1, "most words")])
    root = ElementTree.fromstring(svg)
    words = {e.text for e in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"step", "norm", "norm of <*>", "most words"} <= words
    assert "currentColor" in svg
    assert svg == line_plot(
        [line], x_label="step", y_label="norm", bands=[Band(0, 1, "most words")]
    )


def test_running_mean_is_the_mean_of_what_there_is() -> None:
    np.testing.assert_allclose(running_mean([1, 2, 6, 3], 3), [1.5, 3, 11 / 3, 4.5])
    np.testing.assert_allclose(running_mean([1, 2], 1), [1, 2])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        running_mean([1.0], 0)


def test_a_line_needs_points() -> None:
    with pytest.raises(ValueError, match="got 0 and 0"):
        Line([], [])
