"""A server of the OpenAI chat protocol in a process of its own, that answers from the pictures it is sent.

python chat_server.py PORT LOG: names the colour and the size of the first picture, "red part 40x30". The path says how
it behaves and who asks: /BEHAVIOUR/WHO/v1/chat/completions. LOG gets a JSON line for every request, when it comes and
once it is answered.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

MODEL = "painter"
PALETTE = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "grey": (128, 128, 128)}


def colour_of(picture: Image.Image) -> str:
    mean = picture.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    return min(PALETTE, key=lambda name: sum((a - b) ** 2 for a, b in zip(PALETTE[name], mean, strict=True)))


def describe(pictures: list[Image.Image], prompt: str) -> str:
    kind = "picture" if "in one paragraph" in prompt else "part"
    return f"{colour_of(pictures[0])} {kind} {pictures[0].width}x{pictures[0].height}"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    # The default of 5 turns bursts away.
    request_queue_size = 128

    def __init__(self, port: int, log: Path):
        super().__init__(("127.0.0.1", port), _Handler)
        self.log = log
        self.lock = threading.Lock()
        self.asked: Counter[tuple[str, str]] = Counter()
        self.under_way: Counter[str] = Counter()

    def note(self, **facts: object) -> None:
        with self.lock, self.log.open("a") as file:
            file.write(json.dumps(facts) + "\n")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        behaviour = self.path.split("/")[1]
        if behaviour == "web-site":
            return self._send(200, "<!doctype html><h1>Welcome</h1>", "text/html")
        if behaviour == "locked":
            return self._send(401, {"error": {"message": "invalid key"}})
        self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = body["messages"][0]["content"]
        urls = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
        pictures = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
        prompt = parts[-1]["text"]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        _, behaviour, who, *_ = self.path.split("/")
        with self.server.lock:
            self.server.under_way[who] += 1
            now = self.server.under_way[who]
            self.server.asked[who, key] += 1
            times = self.server.asked[who, key]
        facts = {"who": who, "key": key, "prompt": prompt, "sizes": [p.size for p in pictures]}
        self.server.note(event="asked", under_way=now, max_tokens=body.get("max_tokens"), **facts)
        try:
            self._answer(behaviour, body, describe(pictures, prompt), prompt, times)
            self.server.note(event="answered", **facts)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self.server.lock:
                self.server.under_way[who] -= 1

    def _answer(self, behaviour: str, body: dict, text: str, prompt: str, times: int) -> None:
        if body["model"] != MODEL:
            return self._send(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        if behaviour == "slow":
            time.sleep(0.05)
        elif behaviour == "hang":
            time.sleep(3600)
        elif behaviour == "html":
            return self._send(200, "<!doctype html><h1>Bad gateway</h1>", "text/html")
        elif behaviour == "other-json":
            return self._send(200, {"ok": True})
        elif behaviour == "no-json":
            return self._send(200, "{", "application/json")
        elif behaviour == "quota":
            return self._send(429, {"error": {"message": "You exceeded your quota.", "code": "insufficient_quota"}})
        elif behaviour.startswith("wants-"):
            # Parameters that this server knows, such as wants-max_completion_tokens+temperature.
            known = behaviour.removeprefix("wants-").split("+")
            for name in ("max_tokens", "max_completion_tokens", "temperature"):
                if name in body and name not in known:
                    reported = f"Unsupported parameter: '{name}' is not supported with this model."
                    return self._send(400, {"error": {"message": reported, "param": name}})
        elif behaviour == "blue-400" and "blue" in text:
            return self._send(400, {"error": {"message": "your picture is against our policy"}})
        elif behaviour == "paragraphs-400" and "picture" in text:
            return self._send(400, {"error": {"message": "the limit of tokens is too large"}})
        elif behaviour.startswith("choice-"):
            choice = json.loads(base64.urlsafe_b64decode(behaviour.removeprefix("choice-")))
            completion = {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}
            return self._send(200, completion)
        elif behaviour in ("400", "401", "404", "402", "403", "500", "429"):
            return self._send(int(behaviour), {"error": {"message": f"always {behaviour}"}})
        elif behaviour == "blue-fails":
            if "blue" in text:
                return self._send(503, {"error": {"message": "no blue today"}})
            time.sleep(0.05)
        elif behaviour == "storm" and times <= 2:
            return self._send(429, {"error": {"message": "slow down"}}, headers={"Retry-After": "1"})
        elif (behaviour == "drop" and times <= 1) or (behaviour == "blue-drops" and "blue" in text):
            return self.connection.shutdown(socket.SHUT_RDWR)
        elif behaviour == "trickle":
            return self._trickle()
        elif behaviour == "long" and "short phrase" not in prompt:
            text = "a very long sentence about " + text + " with many more words than ten of them"
        elif behaviour == "refuse":
            text = "I'm sorry, I can't help with that."
        elif behaviour == "refuse-blue" and "blue" in text:
            text = "I'm sorry, I can't help with that."
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self._send(
            200, {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
        )

    def _trickle(self) -> None:
        """A byte now and then: a limit on the pause between bytes never strikes."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "100000")
        self.end_headers()
        for _ in range(100000):
            self.wfile.write(b" ")
            time.sleep(0.1)

    def _send(
        self, status: int, content: object, kind: str = "application/json", headers: dict[str, str] | None = None
    ) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()


if __name__ == "__main__":
    Server(int(sys.argv[1]), Path(sys.argv[2])).serve_forever()
