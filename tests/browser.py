"""A real browser in front of the panel, where the machine has one, which complains of whatever a page does wrong."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright
from serving import assert_slow

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
SIZES = {"desktop": DESKTOP, "phone": PHONE}
AXE = Axe()
CLIPPED = """
    [...document.querySelectorAll(".scroll:has(.cards)")]
        .filter((region) => region.scrollWidth > region.clientWidth)
        .map((region) => [region.textContent.trim().slice(0, 30), region.scrollWidth, region.clientWidth])
"""


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run the machine's Chromium; skip the test where there is none."""
    assert_slow()
    path = next((path for name in NAMES if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"there is no browser on this machine: none of {', '.join(NAMES)} is in the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def windows(browser: Browser, root: str, **looks: Any) -> Iterator[Callable[..., "Visitor"]]:
    """Yield what opens a window on a service, whose looks may be others than usual; all are closed with the block."""
    contexts = []

    def open_window(**options: Any) -> Visitor:
        contexts.append(browser.new_context(**looks | options))
        return Visitor(contexts[-1], root)

    yield open_window
    for context in contexts:
        context.close()


@dataclass
class Visitor:
    """A window of the browser; `complaints` are what no page may cause."""

    context: BrowserContext
    root: str
    complaints: list[str] = field(default_factory=list)
    under_way: set[Request] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.page: Page = self.context.new_page()
        self.page.on("console", self._note_console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"{self.page.url}: {error}"))
        self.page.on("request", self._note_request)
        for end in ("requestfinished", "requestfailed"):
            self.page.on(end, lambda request: self.under_way.discard(request))

    def _note_console(self, message: ConsoleMessage) -> None:
        # a refused sign-in and the like: statuses that tests ask for
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(f"{self.page.url}: {message.text}")

    def _note_request(self, request: Request) -> None:
        self.under_way.add(request)
        if not request.url.startswith((self.root, "data:")):
            self.complaints.append(f"{self.page.url} asked for {request.url}")

    def open(self, path: str) -> None:
        """Open a page and wait for what it fetches."""
        self.page.goto(self.root + path)
        while self.under_way:  # "networkidle" is half a second without any
            self.page.wait_for_timeout(20)

    def sign_in(self, password: str) -> None:
        """Type the password."""
        self.open("/admin/")
        self.page.get_by_label("Admin password").fill(password)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("heading", name="Dashboard", level=1).wait_for()

    def check_width(self, zoom: int = 1) -> None:
        """Fail where the page, so much enlarged, is wider than the window."""
        size = self.page.viewport_size
        self.page.set_viewport_size({name: length // zoom for name, length in size.items()})
        width, window = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        self.page.set_viewport_size(size)
        assert width <= window, f"{self.page.url} is {width} pixels wide in a window of {window}"

    def check_page(self) -> None:
        """Fail where the page is wider than the window, or keeps someone from using it."""
        self.check_width()
        clipped = self.page.evaluate(CLIPPED)
        assert clipped == [], f"{self.page.url} has tables to be scrolled sideways: {clipped}"
        found = AXE.run(self.page).response["violations"]
        grave = [
            (violation["id"], [node["target"] for node in violation["nodes"]])
            for violation in found
            if violation["impact"] in ("serious", "critical")
        ]
        assert grave == [], f"{self.page.url}: {grave}"
        assert self.complaints == []
