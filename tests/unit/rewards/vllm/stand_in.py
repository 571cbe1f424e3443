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
        self.send_response(200 if ok else 500)
        self.end_headers()

    def do_POST(self):
        key = self.headers["Authorization"]
        self.send_response(200 if key == "Bearer " + os.environ["VLLM_API_KEY"] else 401)
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

    A file `breaks` there makes it fail at the start, `ill` makes its /health fail; it writes its
    process ids to `leader` and `engine`.
    """
    script = folder / "python"
    script.write_text(STAND_IN.format(python=sys.executable, folder=str(folder)))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
