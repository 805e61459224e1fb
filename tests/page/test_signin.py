"""The page of a service with users: it asks who one is, shows figures to those who may see them, and keeps nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.auth.conftest import RIGHTS, basic, password, write_users
from tests.auth.conftest import push_image as push
from tests.support.browser import shoot
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with users, one of whom may see everything."""
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "rights.toml").write_text(RIGHTS)
    users = write_users(directory / "users")
    arguments = ("--htpasswd", str(users), "--rights", str(directory / "rights.toml"), "--access-log")
    with running_service(directory / "data", *arguments) as running:
        with httpx.Client(base_url=running.url, timeout=30) as http:
            push(http, "team/app", "1", basic("alice"))
        yield running


@pytest.fixture
def page(browser: Browser, guarded: Service) -> Iterator[Page]:
    """The page, before anybody has signed in."""
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    opened.goto(guarded.url)
    yield opened
    context.close()


def sign_in(page: Page, user: str, secret: str) -> None:
    page.fill("#signin input[name=user]", user)
    page.fill("#signin input[name=password]", secret)
    page.click("#signin button")


def test_figures_for_who_may_see_them(page: Page, guarded: Service) -> None:
    """Nothing is shown before; the password is in no place that outlives the page; signing out forgets it."""
    page.wait_for_selector("#signin:not([hidden])")
    assert page.inner_text("#status") == "Not signed in"
    assert not page.is_visible("#images")
    assert page.evaluate("document.activeElement.name") == "user"
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    shoot(page, "signin")
    sign_in(page, "root", "wrong")
    page.wait_for_selector("#problem:not([hidden])")
    assert page.inner_text("#problem") == "Wrong user or password."
    sign_in(page, "root", password("root"))
    page.wait_for_selector("button[data-image='team/app:1']")
    assert page.is_hidden("#signin")
    assert page.inner_text("#signout") == "Sign out root"
    stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert "root" not in stored
    assert page.evaluate("document.querySelector('#signin').elements.password.value") == ""
    page.click("#signout")
    page.wait_for_selector("#signin:not([hidden])")
    assert page.locator("button[data-image]").count() == 0
    assert " root " in guarded.log()  # the access log says who
    assert password("root") not in guarded.log()


def test_those_who_may_not(page: Page) -> None:
    """See their images, and are told what they may not see."""
    page.wait_for_selector("#signin:not([hidden])")
    sign_in(page, "alice", password("alice"))
    page.wait_for_selector("#problem:not([hidden])")
    page.wait_for_selector("button[data-image='team/app:1']")
    assert "alice may not see the names and figures of all repositories" in page.inner_text("#problem")
    assert page.inner_text("#tiles") == ""
