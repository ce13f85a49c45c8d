"""A real OpenAI-compatible HTTP server around an engine of ours, with the faults that servers have.

As a program it is a process of its own, which dies in the middle of an answer:

    python pope_serving.py MODEL ANSWERS
"""

import json
import os
import ssl
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from retarget.pope.rollouts import Sampling


@contextmanager
def serve(
    engine, faults=(), choices=None, reasoning=None, reasoning_tokens=None, models=None, owner=None, fault_of=None,
    certificate=None,
):  # fmt: skip
    """Serve on a free port; yields (url, what was seen).

    ``faults`` are statuses answered first, in turn, or values to answer with status 200; ``models`` is what /models
    says of the weights, without it there is no such route; ``owner`` is what the server calls itself there.
    ``fault_of(body)`` gives the fault of a request, or None, after ``faults``; a pair is a status and what it answers.
    ``certificate`` is a file with a certificate and its key, for https.
    """
    waiting, lock, model_lock = list(faults), threading.Lock(), threading.Lock()
    seen = {"bodies": [], "active": 0, "peak": 0, "keys": [], "paths": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen["keys"].append(self.headers.get("Authorization"))
            entries = [{"id": "tiny", "created": len(seen["keys"]), "root": models, "owned_by": owner}]
            self.answer(404 if models is None else 200, {"data": entries})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen["bodies"].append(body)
                seen["keys"].append(self.headers.get("Authorization"))
                seen["active"] += 1
                seen["peak"] = max(seen["peak"], seen["active"])
                seen["paths"].append(self.path)
                fault = waiting.pop(0) if waiting else fault_of(body) if fault_of else None
            value = {"error": "later"}
            if fault is None:
                with model_lock:
                    value = complete(engine, body, self.path, choices, reasoning)
                if reasoning_tokens is not None:
                    value["usage"]["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
            with lock:
                seen["active"] -= 1
            if fault == "die":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
                os._exit(1)
            elif fault == "drop":
                self.connection.close()
            elif fault == "page":
                self.answer(200, "<html>", plain=True)
            elif isinstance(fault, dict):
                self.answer(200, fault)
            elif isinstance(fault, tuple):
                self.answer(*fault)
            else:
                self.answer(fault or 200, value)

        def answer(self, status, value, plain=False):
            content = (value if plain else json.dumps(value)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if status == 429:
                self.send_header("Retry-After", "0.01")
            if status == 307:
                self.send_header("Location", "http://elsewhere.example/v1")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def complete(engine, body, path, choices, reasoning):
    """The answer of a server to one request."""
    chat = path.partition("?")[0].endswith("/chat/completions")
    prompt = body["messages"][-1]["content"] if chat else body["prompt"]
    if hasattr(engine, "tokenizer"):  # a tiny model knows few words, and none of the probe's
        prompt = " ".join(word for word in prompt.split() if word in engine.tokenizer.get_vocab())
    params = Sampling(max_tokens=body["max_tokens"], temperature=body["temperature"], seed=body["seed"])
    (rollouts,) = engine.sample([prompt], choices or body["n"], params)
    made = []
    for index, one in enumerate(rollouts):
        content = (
            {"message": {"role": "assistant", "content": one.text, "reasoning": reasoning}}
            if chat
            else {"text": one.text}
        )
        made.append({"index": index, "finish_reason": "length" if one.truncated else "stop", **content})
    return {"choices": made, "usage": {"completion_tokens": sum(one.tokens for one in rollouts)}}


def main(model, answers):
    """Print the address, answer so often, then die."""
    from retarget.pope.engines import open_engine

    with serve(open_engine(model), faults=[*[None] * int(answers), "die"]) as (url, _):
        print(url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
