"""The page in a headless Chromium, in front of `ferry serve` with the bundled model.

    page_in_browser.py BIN_DIR MODEL [SCREENSHOT_DIR]      ends with 77 where there is no Chromium
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

from browser import Browser, find_chromium

HOSTILE = (
    "# Title\n\n<img src=x onerror=\"document.title='owned'\"> and <script>document.title='owned'</script>\n\n"
    "[click](javascript:document.title='owned') [site](https://example.com/a) ![pic](https://example.com/p.png)\n\n"
    "**bold** *italic* `code <b>`\n\n- one\n- two\n  1. inner\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n"
    "```python\ndef f(x):  # comment\n    return \"text\"\n```\n"
)
STORED = {
    "id": "1-2-3-4", "title": "Kept from before", "updated": 1,
    "messages": [
        {"role": "user", "content": "<b>not bold</b>"},
        {"role": "assistant", "content": HOSTILE, "reasoning": "I *think* first."},
    ],
}
CONTROL, SHIFT = 2, 8


def messages(browser):
    return texts(browser, "#messages > article > .text")


def texts(browser, selector):
    return browser.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")


def ask(browser, text):
    browser.click("#composer-text")
    browser.write(text)
    browser.press("Enter")


def finish(browser):
    browser.until("document.getElementById('stop').hidden && !document.querySelector('.growing')")


def set_fields(browser, **fields):
    browser.click("#open-settings")
    browser.until("document.getElementById('settings').open")
    for name, value in fields.items():
        browser.run(f"document.getElementById('{name}').value = {json.dumps(str(value))}")
    browser.click("#settings button[value=close]")
    browser.until("!document.getElementById('settings').open")


def chat_streams_and_tells_its_speed(browser):
    set_fields(browser, temperature=0, max_tokens=8)
    ask(browser, "Once upon a time")
    finish(browser)
    question, answer = messages(browser)
    assert question == "Once upon a time" and len(answer) > 5, (question, answer)
    assert re.search(r"tokens/s · 8 tokens", texts(browser, ".stats")[0]), texts(browser, ".stats")
    assert texts(browser, ".note") == ["The limit of tokens ended this answer."]
    return answer


def second_turn_has_the_history(browser, first):
    ask(browser, "And then?")
    finish(browser)
    assert messages(browser)[:3] == ["Once upon a time", first, "And then?"], messages(browser)
    stats = browser.run("[...document.querySelectorAll('.stats')].at(-1).title")
    assert int(re.match(r"(\d+) tokens of prompt", stats).group(1)) > 30, stats


def regenerate_and_edit_replace_what_followed(browser, first):
    browser.click("article.assistant .buttons button:last-child")
    finish(browser)
    assert messages(browser) == ["Once upon a time", first], "at temperature 0 the answer is the same"
    browser.run("document.querySelector('article.user').dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))")
    browser.click("article.user .tools button")
    browser.press("a", "KeyA", CONTROL)
    browser.run("document.querySelector('.user.edit textarea').select()")
    browser.write("A little cat")
    browser.press("Enter")
    finish(browser)
    assert messages(browser)[0] == "A little cat" and len(messages(browser)) == 2, messages(browser)


def escape_stops(browser):
    set_fields(browser, max_tokens=3000)
    browser.press("O", "KeyO", CONTROL | SHIFT)
    ask(browser, "A little dog")  # the model goes on for ever
    browser.until("document.querySelector('.growing .text.markdown')?.textContent.length > 20")
    browser.press("Escape")
    finish(browser)
    assert texts(browser, ".note") == ["Stopped."], texts(browser, ".note")
    set_fields(browser, max_tokens=8)


def an_answer_goes_on_while_another_is_read(browser):
    browser.press("O", "KeyO", CONTROL | SHIFT)
    ask(browser, "Elsewhere")
    browser.click("#conversations li:last-child .open")
    browser.until("!document.querySelector('#conversations').textContent.includes('●')")
    assert messages(browser)[0] == "A little cat", messages(browser)
    browser.click("#conversations li:first-child .open")
    assert messages(browser)[0] == "Elsewhere" and len(messages(browser)[1]) > 5, messages(browser)


def conversations_are_kept_and_deleted(browser, root):
    before = texts(browser, "#conversations .open")
    browser.open(root)
    assert texts(browser, "#conversations .open") == before == ["Elsewhere", "A little dog", "A little cat"], before
    browser.run("document.querySelector('#conversations .remove').focus()")
    browser.click("#conversations .remove")
    browser.click("#conversations .remove[data-sure]")
    assert texts(browser, "#conversations .open") == before[1:]


def what_a_model_writes_stays_text(browser, root, picture):
    browser.run(f"localStorage.setItem('ferry.conversation.1-2-3-4', {json.dumps(json.dumps(STORED))})")
    browser.open(root)
    browser.click("#conversations li:last-child .open")
    assert browser.run("document.title") == "Ferry"
    assert browser.run("document.querySelectorAll('#messages img, #messages script, #messages b').length") == 0
    links = browser.run("[...document.querySelectorAll('#messages a')].map(e => [e.getAttribute('href'), e.rel])")
    assert [link[0] for link in links] == ["https://example.com/a", "https://example.com/p.png"], links
    assert all("noopener" in link[1] for link in links), links
    wanted = ["h3", "strong", "em", "ul ol li", "td.align-right", ".code-word", ".code-comment", ".code-string", "details em"]
    for selector in wanted:
        assert browser.run(f"document.querySelectorAll('#messages {selector}').length"), selector
    assert not browser.run("document.querySelector('details.reasoning').open"), "reasoning is folded"
    picture("markdown")


def narrow_screens_have_a_menu(browser, picture):
    browser.size(390, 800)
    hidden = "getComputedStyle(document.getElementById('sidebar')).visibility === 'hidden'"
    for leave in lambda: browser.click_at(380, 400), lambda: browser.click("#conversations li:first-child .open"):
        browser.until(hidden)
        browser.click("#menu")
        browser.until("document.getElementById('sidebar').getBoundingClientRect().left === 0")
        picture("narrow-menu")
        leave()
    browser.until(hidden)
    for view in "#chat", "#engine":
        browser.run(f"location.hash = '{view}'")
        browser.until("document.querySelector('main:not([hidden])').childElementCount > 1")
        assert browser.run("document.documentElement.scrollWidth") <= 390, view
        picture("narrow-" + view[1:])
    browser.size(1200, 800)


def engine_room_shows_the_engine(browser, picture):
    browser.run("location.hash = '#engine'")
    browser.until("document.querySelectorAll('.tile').length === 6")
    assert texts(browser, ".tile-value")[0] == "serving"
    assert browser.run("document.querySelectorAll('.layers .layer').length") == 6
    assert texts(browser, ".worker h3")[0].startswith("Worker 0")
    browser.until("document.querySelector('.worker').textContent.includes('found in slots')")
    heat = "document.querySelector('.heat')"
    assert browser.run(f"[{heat}.width, {heat}.height]") == [32, 6], "experts, layers"
    lit = f"{heat}.getContext('2d').getImageData(0, 0, 32, 6).data.filter((byte, i) => i % 4 === 3 && byte > 100).length"
    assert browser.run(lit) > 10, "experts that were missed are hot"
    drawn = browser.run("document.querySelector('.tile-note').textContent")
    browser.until(f"document.querySelector('.tile-note').textContent !== {json.dumps(drawn)}")
    for scheme in "light", "dark":
        browser.size(1200, 900, scheme)
        picture("engine-" + scheme)
    browser.run("location.hash = '#chat'")
    for scheme in "light", "dark":
        browser.size(1200, 800, scheme)
        picture("chat-" + scheme)


def engine_room_shows_running_requests(browser, root):
    # The model goes on for ever, until this connection is closed.
    body = json.dumps({"prompt": "A little dog", "max_tokens": 3500, "temperature": 0, "stream": True, "ignore_eos": True})
    request = urllib.request.Request(root + "v1/completions", body.encode(), {"X-Request-Id": "seen-by-the-page"})
    with urllib.request.urlopen(request, timeout=60):
        browser.run("location.hash = '#engine'")
        shown = "document.querySelector('.running')?.textContent"
        browser.until(f"{shown}?.includes('seen-by-the-page') && {shown}.includes('tokens written behind')")
    browser.run("location.hash = '#chat'")


def a_key_is_asked_for(browser, root, key):
    browser.open(root)
    browser.until("document.getElementById('state').textContent === 'needs a key'")
    browser.run("location.hash = '#engine'")
    browser.until("document.getElementById('engine-view').textContent.includes('wants an API key')")
    browser.run("location.hash = '#chat'")
    ask(browser, "Once")
    browser.until("document.getElementById('settings').open && document.activeElement.id === 'key'")
    browser.write(key)
    browser.press("Enter", text="\r")
    browser.until("document.getElementById('state').textContent === 'ready'")
    assert all(error.endswith("401 (Unauthorized)") for error in browser.errors), browser.errors
    browser.errors.clear()
    set_fields(browser, max_tokens=4)
    ask(browser, "Twice")
    finish(browser)
    assert "4 tokens" in texts(browser, ".stats")[-1]


def healthy(root):
    try:
        return urllib.request.urlopen(root + "health", timeout=10).status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def main():
    programs, model = sys.argv[1:3]
    pictures = sys.argv[3] if len(sys.argv) > 3 else None
    chromium = find_chromium()
    if chromium is None:
        print("skipped: there is no Chromium here")
        sys.exit(77)
    processes = []

    def start(name, *arguments, **options):
        processes.append(subprocess.Popen([os.path.join(programs, name), *arguments], text=True, **options))
        return processes[-1]

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # no rates of this busy machine are kept for others
        browser = Browser(chromium)

        def picture(name):
            browser.run("new Promise(done => setTimeout(done, 300))")  # transitions end
            if pictures:
                browser.screenshot(os.path.join(pictures, name + ".png"))

        def port_of(file):
            browser.wait(lambda: os.path.exists(file) and open(file).read().endswith("\n"), file)
            return open(file).read().strip()

        try:
            key = re.search("fk-[-0-9a-f]+", subprocess.run(
                [os.path.join(programs, "ferry"), "api-key", "alice", "--file", folder + "/keys", "--admin"],
                capture_output=True, text=True, check=True).stdout).group()
            serve = start("ferry", "serve", "-m", model, "--workers", "2", "--vram-experts", "2MiB", "--port", "0",
                          "--http-port", "0", stderr=subprocess.PIPE)
            address = next(match.group(1) for line in serve.stderr if (match := re.search(r"coordinator at (\S+)", line)))
            roots = []
            for name, more in ("open", []), ("keyed", ["--api-key-file", folder + "/keys"]):
                file = os.path.join(folder, name)
                start("ferry-gateway", "--listen", "127.0.0.1:0", "--coordinator", address, "--port-file", file,
                      "--log-level", "warn", *more)
                roots.append(f"http://127.0.0.1:{port_of(file)}/")
            for root in roots:
                browser.wait(lambda: healthy(root), root)
            browser.size(1200, 800)
            browser.open(roots[0])
            browser.until("document.getElementById('state').textContent === 'ready'")
            first = chat_streams_and_tells_its_speed(browser)
            second_turn_has_the_history(browser, first)
            regenerate_and_edit_replace_what_followed(browser, first)
            escape_stops(browser)
            an_answer_goes_on_while_another_is_read(browser)
            conversations_are_kept_and_deleted(browser, roots[0])
            what_a_model_writes_stays_text(browser, roots[0], picture)
            narrow_screens_have_a_menu(browser, picture)
            engine_room_shows_running_requests(browser, roots[0])
            engine_room_shows_the_engine(browser, picture)
            assert browser.errors == [], browser.errors
            a_key_is_asked_for(browser, roots[1], key)
            assert browser.errors == [], browser.errors
            elsewhere = [url for url in browser.requests if not url.startswith((*roots, "data:"))]
            assert elsewhere == [], elsewhere
            print("ok: the page")
        finally:
            browser.close()
            for process in reversed(processes):
                process.send_signal(signal.SIGTERM)
            for process in processes:
                process.wait(timeout=60)


main()
