"""The TensorBoard plugin (entry point `tensorboard_plugins`): every run.json and every trace under the log directory.

Routes under /data/plugin/perfscope: `index.html` (list and frame), `runs` (JSON), `page?id=...` (the report of a run, or
the page of a trace). Only files that the search found are read; a page may load nothing but itself. Needs TensorBoard,
not torch.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from perfscope.errors import PerfscopeError
from perfscope.tensorboard import page
from perfscope.trace import tb
from perfscope.trace.view import is_record

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
POLICY = "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
RESCAN_S = 5.0  # a request within that time gets the last search's result
MOST_PAGES = 8  # kept in memory; a report is 2 to 5 MB
MOST_ENTRIES = 500  # in the list


class PerfscopePlugin(base_plugin.TBPlugin):
    """perfscope's reports and trace pages."""

    plugin_name = "perfscope"

    def __init__(self, context: base_plugin.TBContext):
        super().__init__(context)
        self.logdir = Path(context.logdir or ".")
        self._lock = threading.Lock()
        self._found: dict[str, dict] = {}
        self._searched = -RESCAN_S
        self._pages: dict[tuple, str] = {}

    def is_active(self) -> bool:
        """Whether there is anything to show: TensorBoard lists the plugin among the active ones then."""
        return bool(self.entries())

    def frontend_metadata(self):
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="perfscope", disable_reload=True)

    def get_plugin_apps(self):
        return {
            **{f"/{name}": self.static for name in ("index.js", "index.html", "app.js", "app.css")},
            "/runs": self.runs,
            "/page": self.page,
        }

    def entries(self) -> dict[str, dict]:
        """id (path below the log directory) -> kind, name, path, of every run and trace, the newest search's."""
        with self._lock:
            if time.monotonic() - self._searched >= RESCAN_S:
                self._found, self._searched = search(self.logdir), time.monotonic()
            return self._found

    @wrappers.Request.application
    def static(self, request):
        file = STATIC / os.path.basename(request.path)
        return answer(file.read_bytes(), TYPES[file.suffix])

    @wrappers.Request.application
    def runs(self, request):
        shown = [{k: v for k, v in e.items() if k != "path"} for e in self.entries().values()]
        return answer(json.dumps({"runs": shown, "logdir": str(self.logdir)}), "application/json")

    @wrappers.Request.application
    def page(self, request):
        entry = self.entries().get(request.args.get("id", ""))
        if entry is None:
            return answer(
                page.problem("There is no such run any more", "Reload the list."), TYPES[".html"], 404, page.POLICY
            )
        try:
            stamp = os.stat(entry["path"])
            key = (entry["path"], stamp.st_mtime_ns, stamp.st_size)
            if key not in self._pages:
                text = page.of_record(entry["path"]) if entry["kind"] == "run" else page.of_trace(entry["path"])
                with self._lock:
                    self._pages[key] = text
                    while len(self._pages) > MOST_PAGES:
                        self._pages.pop(next(iter(self._pages)))
            return answer(self._pages.get(key) or text, TYPES[".html"], policy=page.POLICY)
        except PerfscopeError as e:
            return answer(page.problem(e.message, e.hint), TYPES[".html"], policy=page.POLICY)
        except Exception as e:  # one page that cannot be made must not cost the others
            return answer(
                page.problem(f"This page could not be made: {type(e).__name__}: {e}"),
                TYPES[".html"],
                policy=page.POLICY,
            )


def answer(content, kind: str, status: int = 200, policy: str = POLICY):
    """A response with the page's content security policy, never cached."""
    return wrappers.Response(
        content,
        status=status,
        content_type=kind,
        headers=[
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Cache-Control", "no-cache"),
        ],
    )


def search(logdir: Path) -> dict[str, dict]:
    """Every run and trace below a folder, runs first; copies for the old plugin only where their original is not there."""
    found, copies, originals = [], [], set()
    for root, folders, names in os.walk(logdir):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            file = Path(root) / name
            if not name.endswith((".json", ".json.gz")) or name.startswith("."):
                continue
            entry = {
                "id": str(file.relative_to(logdir)),
                "name": str(file.parent.relative_to(logdir)),
                "file": name,
                "path": str(file),
            }
            if entry["name"] == ".":
                entry["name"] = logdir.resolve().name
            if name.endswith(".json") and is_record(file):
                found.append({**entry, "kind": "run"})
            elif mark := tb.mark_of(file):
                copies.append(({**entry, "kind": "trace"}, file.parent, mark.get("of", "")))
            elif tb.looks_like_trace(file):
                originals |= {file, file.resolve().parent / file.name, file.parent / file.resolve().name}
                found.append({**entry, "kind": "trace"})
        if len(found) + len(copies) > MOST_ENTRIES:
            break
    found += [e for e, folder, of in copies if not {folder / of, folder.parent / of} & originals]
    return {e["id"]: e for e in sorted(found, key=lambda e: (e["kind"], e["name"], e["file"]))}
