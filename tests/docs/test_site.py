"""The site can be read in a browser: on a telephone and on a wide screen, in light and in dark."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "behaviour"))
import browser

BUILT = Path(__file__).parents[2] / "docs/_build"
WIDTHS = (390, 1600)
PAGES = ("index", "how-it-works", "choose", "exactness", "write-a-plugin", "api/Policy")
PAGES += ("results/smollm2-perplexity", "api/messages")

pytestmark = [
    pytest.mark.skipif(
        browser.chromium() is None, reason="no Chromium is installed (apt-get install chromium)"
    ),
    pytest.mark.skipif(not BUILT.exists(), reason="the site is not built (make docs)"),
]


@pytest.mark.parametrize("scheme", browser.SCHEMES)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_the_site_can_be_read(name, scheme, tmp_path):
    file = BUILT / f"{name}.html"
    page = file.read_text("utf-8").replace("<head>", f'<head><base href="{file.as_uri()}">', 1)
    found = browser.measured(page, WIDTHS, scheme, tmp_path)
    for width in WIDTHS:
        seen = found[width]
        assert seen["dark"] == (scheme == "dark")
        assert (sum(seen["ground"][:3]) < 3 * 128) == (scheme == "dark"), "no style was loaded"
        assert seen["texts"] > 10
        assert seen["wide"] <= width, "the page is wider than the screen"
        assert seen["clipped"] == [], "text is cut off"
        assert seen["overlapping"] == [], "text lies on text"
        assert seen["pale"] == [], "text is hard to tell from its ground"
