"""Takes the pictures of the README and of docs/waves.md: from a lab of its own, by a headless Chromium.

    apt-get install chromium chromium-driver
    .venv/bin/uv pip install --target /tmp/selenium selenium
    PYTHONPATH=/tmp/selenium:plugins:. .venv/bin/python docs/screenshots.py [vm] [wave] [many]

It moves the demo's guest and a small wave, and plans 1,000 VMs; what is on the pictures is from these runs, nothing is
drawn. Some ten minutes for all, on a machine without a lab that is up.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from hyperflow.cli.limits import limits
from rich.console import Console
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from bench import scale
from lab import demo
from lab.running import READING, RunningLab, running_lab
from tests.lab.test_waves import answer, small, write_wave

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1500, 950  # pixels
PATIENCE = 60  # seconds for a page
MANY = 1000  # DAGs
AIRFLOW_READS = 300  # seconds
COLD = {"strategy": "cold", "approval": {"by": ["admin"]}, "health": {"addresses": []}}
WAVE = {
    "name": "night",
    "members": ["*"],
    "after": {"small02": ["small01"], "small03": ["small01"]},
    "max_in_flight": 2,
    "approval": {"by": ["admin"]},
}


def main(parts: list[str]) -> None:
    """Bring the lab up and take the pictures of these parts, or all."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hyperflow-lab-") as folder, running_lab(Path(folder) / "lab") as bench:
        airflow = json.loads((bench.folders.state / "airflow.json").read_text())
        with tempfile.TemporaryDirectory() as profile:
            browser = open_browser(profile)
            try:
                log_in(browser, airflow)
                for name, take_pictures in (("vm", of_a_vm), ("wave", of_a_wave), ("many", of_many)):
                    if name in parts or not parts:
                        take_pictures(browser, bench, airflow["url"])
            finally:
                browser.quit()


def of_a_vm(browser: webdriver.Chrome, _bench: RunningLab, url: str) -> None:
    """Move the demo's guest; its DAG, form, log and report."""
    outcome = demo.run(Console(highlight=False))
    if outcome.state != "success":
        sys.exit(f"the demo's run ended as {outcome.state}: no pictures of that")
    page = f"{url}/dags/{outcome.dag_id}"
    run = f"{page}/runs/{outcome.run_id}"
    show(browser, f"{run}/tasks/export/mapped/0", "progress: download disk-0")
    take(browser, "log")
    show(browser, page, "Trigger")
    browser.find_element(By.XPATH, "//button[contains(., 'Trigger')]").click()
    wait_for(browser, "Skip the boot proof")
    take(browser, "form")
    show(browser, run, "preflight")
    graph(browser)
    take(browser, "graph")
    show(browser, f"{url}/hyperflow/runs/{outcome.dag_id}/{outcome.run_id}/", "web01")
    take(browser, "report")


def of_a_wave(browser: webdriver.Chrome, bench: RunningLab, url: str) -> None:
    """Move three small VMs as a wave, one of them for good; the question, the wave at work, its report."""
    vms = [small(1), small(2), {**small(3), "cutover": COLD}]
    file = write_wave(bench, "saturday", vms, [WAVE])
    limits([file], apply=True, endpoint=bench.folders.state / "airflow.json")
    dag_id = "wave.saturday.night"
    run_id = bench.start(dag_id, {"skip_boot": True})
    answer(bench, dag_id, run_id, "approve", "Approve")
    (mover,) = [each for each in bench.dags_of("saturday") if each.endswith("small03")]
    bench.until(lambda: bool(asked(bench)))
    (task,) = (each["task_instance"] for each in asked(bench))
    page = f"{url}/dags/{mover}/runs/{task['dag_run_id']}/tasks/{task['task_id']}/required_actions"
    show(browser, page, "Approve")
    take(browser, "question")
    show(browser, f"{url}/dags/{dag_id}/runs/{run_id}", "small03")
    graph(browser)
    take(browser, "wave-graph")
    waiting = threading.Event()
    threading.Thread(target=say_yes, args=[bench, mover, waiting], daemon=True).start()
    bench.wait(dag_id, run_id)
    waiting.set()
    show(browser, f"{url}/hyperflow/runs/{dag_id}/{run_id}/wave", "small03")
    take(browser, "wave-report")


def of_many(browser: webdriver.Chrome, bench: RunningLab, url: str) -> None:
    """Plan 1,000 VMs in waves; the list of DAGs, of one wave those still to be moved, and how long it takes."""
    scale.write_plans(bench.folders.plans)
    begun = time.monotonic()
    while (count := bench.api.request("GET", "/api/v2/dags", params={"limit": 1})["total_entries"]) < MANY:
        if time.monotonic() - begun > AIRFLOW_READS:
            sys.exit(f"Airflow has read {count} DAGs, expected {MANY}")
        time.sleep(2)
    print(f"{count} DAGs, read within {time.monotonic() - begun:.0f} s")
    narrowed = "/dags?tags=wave%3Awave-3&tags=state%3Aplanned&tags_match_mode=all"
    for path, text in (("/dags", "plan-0"), (narrowed, "wave-3")):
        begun = time.monotonic()
        browser.get(url + path)
        WebDriverWait(browser, PATIENCE).until(
            lambda page, text=text: text in page.find_element(By.TAG_NAME, "body").text
        )
        print(f"{path}: {time.monotonic() - begun:.1f} s in the browser")
    wait_for(browser, "wave-3")
    take(browser, "dags")


def asked(bench: RunningLab) -> list[dict[str, Any]]:
    """List the questions that wait for an answer."""
    found = bench.api.request("GET", "/api/v2/dags/~/dagRuns/~/hitlDetails", params={"response_received": False})
    return list(found["hitl_details"])


def say_yes(bench: RunningLab, dag_id: str, over: threading.Event) -> None:
    """Approve whatever a VM's run asks."""
    while not over.wait(2.0):
        for one in asked(bench):
            task = one["task_instance"]
            if task["dag_id"] != dag_id:
                continue
            time.sleep(READING)
            path = f"/api/v2/dags/{dag_id}/dagRuns/{task['dag_run_id']}/taskInstances/{task['task_id']}/-1/hitlDetails"
            bench.api.request("PATCH", path, json={"chosen_options": ["Approve"], "params_input": {}})


def open_browser(profile: str) -> webdriver.Chrome:
    """Start a headless Chromium that keeps to itself."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"),
        f"--window-size={WIDTH},{HEIGHT}",
    ):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))


def log_in(browser: webdriver.Chrome, airflow: dict[str, Any]) -> None:
    """Fill in Airflow's login page."""
    browser.get(f"{airflow['url']}/auth/login")
    WebDriverWait(browser, PATIENCE).until(lambda page: page.find_elements(By.NAME, "username"))
    browser.find_element(By.NAME, "username").send_keys(airflow["user"])
    browser.find_element(By.NAME, "password").send_keys(airflow["password"])
    browser.find_element(By.XPATH, "//button[@type='submit']").click()
    WebDriverWait(browser, PATIENCE).until(lambda page: "/auth/login" not in page.current_url)


def show(browser: webdriver.Chrome, url: str, text: str) -> None:
    """Open a page and wait until it holds a text."""
    browser.get(url)
    wait_for(browser, text)


def graph(browser: webdriver.Chrome) -> None:
    """Switch a run's page to its graph."""
    browser.find_element(By.XPATH, "//button[starts-with(@aria-label, 'Show Graph')]").click()
    time.sleep(4)


def wait_for(browser: webdriver.Chrome, text: str) -> None:
    """Wait until the page holds a text, and a little longer for what moves."""
    WebDriverWait(browser, PATIENCE).until(lambda page: text in page.find_element(By.TAG_NAME, "body").text)
    time.sleep(2)


def take(browser: webdriver.Chrome, name: str) -> None:
    """Write what is shown as a PNG."""
    browser.save_screenshot(str(IMAGES / f"{name}.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
