"""QR codes in pages."""

import re

from tokenrouter.qr import qr_code


def test_qr_code_is_drawn_in_the_page_and_says_where_it_leads():
    drawn = qr_code("https://example.org/usage", "<The usage page>")
    assert drawn.startswith('<span role="img" aria-label="&lt;The usage page&gt;"><svg ')
    assert re.search(r'viewBox="0 0 \d+ \d+" class="qr"', drawn) and "<script" not in drawn and " width=" not in drawn


def test_text_that_is_another_makes_another_code():
    assert qr_code("a", "it") != qr_code("b", "it")


def test_qr_code_has_an_id_by_which_it_is_shown_again():
    assert 'id="usage-qr"' in qr_code("https://example.org/usage", "it", svg_id="usage-qr")
