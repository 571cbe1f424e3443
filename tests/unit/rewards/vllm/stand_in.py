"""A small script in place of the interpreter of vLLM: it serves /health and one model at once."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

STAND_IN = """#!{python} -IS
import http.server, os, subprocess, sys, time

if sys.argv[1] == "-c":
    sys.exit(int(os.environ.get("NO_VLLM", "0")))
port = int(sys.argv[sys.argv.index("--port") + 1])
folder = {folder!r}
if os.path.exists(folder + "/breaks"):
    sys.exit("no memory left on the device")


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ok = not os.path.exists(folder + "/ill")
        if self.path != "/health" and not self.has_key():
            ok = False
        self.send_response(200 if ok else 500)
        self.end_headers()

    def has_key(self):
        return self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]

    def do_POST(self):
        while os.path.exists(folder + "/hung"):
            time.sleep(0.05)
        self.send_response(200 if self.has_key() else 401)
        self.end_headers()
        self.wfile.write(b"{{}}")

    def log_message(self, *args):
        pass


engine = subprocess.Popen([sys.executable, "-IS", "-c", "import time; time.sleep(600)"])
open(folder + "/engine", "w").write(str(engine.pid))
open(folder + "/leader", "w").write(str(os.getpid()))
http.server.ThreadingHTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


def write_stand_in(folder: Path) -> None:
    """Write `python` and `model` into the folder.

    A file `breaks` there makes it fail at the start, `ill` makes its /health fail, `hung` keeps its
    requests waiting; it writes its process ids to `leader` and `engine`.
    """
    script = folder / "python"
    script.write_text(STAND_IN.format(python=sys.executable, folder=str(folder)))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
