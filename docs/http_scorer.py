"""A whole server for a scorer of kind `http`: a picture's score is the size of its PNG file in
bytes a pixel, so that detail is better. Put your own judge into `score`.

JUDGE_TOKEN=... python docs/http_scorer.py 8000, and in the recipe, under scorers:
  detail: {kind: http, path: "http://localhost:8000", token_env: JUDGE_TOKEN, weight: 1}
"""

import base64
import hmac
import json
import os
import struct
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def score(png: bytes, prompt: str, metadata: dict | None) -> float:
    width, height = struct.unpack(">II", png[16:24])
    return len(png) / (width * height)


class Judge(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        token = f"Bearer {os.environ.get('JUDGE_TOKEN', '')}"
        if not hmac.compare_digest(self.headers.get("Authorization", "Bearer "), token):
            return self.send_error(401)
        pictures = [base64.b64decode(image) for image in asked["images"]]
        scores = map(score, pictures, asked["prompts"], asked["metadata"])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"scores": list(scores)}).encode())


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Judge)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
