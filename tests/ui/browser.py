"""Prefect's UI as its users have it: forms by the texts that they read, runs by their tabs, in a real Chromium."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from playwright.sync_api import Locator, Page, Route, TimeoutError, sync_playwright

from tests.support.session import need

PATIENCE = 120_000
"""Milliseconds that anything may take before a test fails: only a broken UI or run comes near it."""
GLANCE = 10_000
"""Milliseconds between two looks at a page that may have stopped to look for news."""
LOGO = Path(__file__).parents[2] / "docs" / "logo.png"


class PrefectUI:
    """A page of the UI that `server` (`http://HOST:PORT`) has."""

    def __init__(self, page: Page, server: str) -> None:
        self.page = page
        self.address = f"{server}/v2"

    def open_form(self, deployment: str) -> None:
        """From the list of deployments to the form that starts a run of one."""

        def click_through() -> None:
            self.page.get_by_placeholder("Search deployments").fill(deployment)  # the list may have many pages
            self.page.get_by_role("link", name=deployment, exact=True).first.click()
            self.page.get_by_role("button", name="Run", exact=True).click()
            self.page.get_by_role("menuitem", name="Custom run").click()
            self.page.get_by_role("heading", name="Parameters").wait_for()
            self.field("workspace").wait_for()  # the parameters come after the rest

        self.page.goto(f"{self.address}/deployments")
        self._patiently(click_through)

    def labels(self) -> list[str]:
        """The names of all fields, from top to bottom."""
        return self.page.locator("label").all_inner_texts()

    def field(self, label: str) -> Locator:
        """The part of the form that belongs to the field with this label."""
        found = self.page.locator("label").filter(has_text=re.compile(rf"^{re.escape(label)}(?: \(Optional\))?$"))
        return found.locator("xpath=ancestor::div[contains(concat(' ', @class, ' '), ' group ')][1]")

    def write(self, label: str, text: str) -> None:
        """Put text into a field as pasting does, line ends and all."""
        self.field(label).get_by_role("textbox").fill(text)

    def add_rows(self, label: str, rows: list[str]) -> None:
        """Put each text into a row of its own."""
        field = self.field(label)
        for number, row in enumerate(rows):
            field.get_by_role("button", name="Add item").click()
            field.get_by_role("textbox").nth(number).fill(row)

    def open_choices(self, label: str) -> list[str]:
        """Open a drop-down of blocks; gives the names in it."""
        self.field(label).get_by_role("button", name="Select a block").click()
        self.page.get_by_role("option").first.wait_for()
        return self.page.get_by_role("option").all_inner_texts()

    def choose(self, label: str, block: str) -> None:
        """Find a block in a drop-down by its name and choose it: of many, it lists the first fifty only."""
        self.open_choices(label)
        self.page.get_by_placeholder("Search for a block").fill(block)
        self.page.get_by_role("option", name=block, exact=True).click()

    def submit(self) -> str:
        """Start the run; gives its id, and shows its page. A server whose database is busy is asked again."""
        for _ in range(10):
            with self.page.expect_response(re.compile(r"/create_flow_run$")) as answer:
                self.page.get_by_role("button", name="Submit").click()
            if answer.value.status != 503:
                break
            self.page.wait_for_timeout(1000)
        created = answer.value.json()
        assert answer.value.ok, created
        run_id = str(created["id"])
        self.open_run(run_id)
        return run_id

    def open_run(self, run_id: str) -> None:
        """The page of a run, with its log in front."""
        self.page.goto(f"{self.address}/runs/flow-run/{run_id}")

    def tab(self, name: str) -> None:
        """Turn to a tab of the run's page."""
        self.page.get_by_role("tab", name=name, exact=True).click()

    def until_shown(self, text: str) -> None:
        """Wait until the page shows a text. Once its run has ended, a page does not look for late log lines."""
        self._patiently(self.page.get_by_text(text).first.wait_for)

    def open_artifact(self, key: str) -> None:
        """From a run's page to what an artifact of it holds."""

        def click_through() -> None:
            self.tab("Artifacts")
            self.page.get_by_role("link", name=key).first.click()
            self.page.get_by_role("link", name=re.compile(r"^[0-9a-f]{8}$")).first.click()

        self._patiently(click_through)

    def _patiently(self, look: Callable[[], None]) -> None:
        """Do something on this page; where a part is missing, load the page anew, as a person would.

        The UI asks its server once: what a busy server did not answer stays away.
        """
        address = self.page.url
        self.page.set_default_timeout(GLANCE)
        try:
            for _ in range(PATIENCE // GLANCE):
                with suppress(TimeoutError):
                    return look()
                self.page.goto(address, timeout=PATIENCE)
        finally:
            self.page.set_default_timeout(PATIENCE)
        raise AssertionError(f"{self.page.url} has not what was looked for: {self.text()}")

    def text(self) -> str:
        """All that the page shows."""
        return self.page.inner_text("body")


@contextmanager
def browsing(server: str) -> Iterator[PrefectUI]:
    """A browser at the UI, which reaches that server alone, until the end of the block."""
    need("chromium")

    def elsewhere(route: Route) -> None:
        if route.request.resource_type == "image":
            route.fulfill(path=LOGO)  # blocks have their logo on a public site
        else:
            route.abort()

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = chromium.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(PATIENCE)
        page.route(lambda url: not url.startswith(server), elsewhere)
        try:
            yield PrefectUI(page, server)
        finally:
            chromium.close()
