"""A hub on loopback: what huggingface_hub asks for a model's files and for a commit, kept in memory. Imports nothing that reads `HF_ENDPOINT`."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret"


class Refused(Exception):
    "An answer with this status and the hub's word for why."


class Hub(ThreadingHTTPServer):
    """Models by name, each with its branches: {name: {branch: commit}}, {commit: {file: bytes}}; a private one asks for `TOKEN`.

    `asked` lists the requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.models, self.commits, self.private, self.asked = {}, {}, set(), []
        self.url = f"http://127.0.0.1:{self.server_port}"
        Thread(target=self.serve_forever, daemon=True).start()

    def stop(self):
        "Stop answering."
        self.shutdown()
        self.server_close()

    def find(self, name: str, revision: str, token: str | None) -> str:
        "Return the commit that is meant."
        if name not in self.models or name in self.private and token != f"Bearer {TOKEN}":
            raise Refused(401, "RepoNotFound")  # the hub does not say which of the two
        found = self.models[name].get(revision, revision)
        if found not in self.models[name].values():
            raise Refused(404, "RevisionNotFound")
        return found

    def commit(self, name: str, branch: str, lines: list[dict]) -> str:
        "Add the files of a commit to those of `branch`, and return the new commit."
        files = dict(self.commits.get(self.models[name].get(branch), {}))
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
            elif line["key"] != "header":
                raise Refused(400, f"no {line['key']} here")
        told = json.dumps([name, len(self.commits), sorted(files)])
        self.models[name][branch] = new = hashlib.sha1(told.encode()).hexdigest()
        self.commits[new] = files
        return new


def etag(content: bytes) -> str:
    "Return git's name for a file's contents."
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        "Say nothing."

    def answer(self, body=b"", status: int = 200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_one(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.server.asked.append(f"{self.command} {'/'.join(parts)}")
        try:
            self.route(parts, content)
        except Refused as why:
            self.answer(b"", why.args[0], X_Error_Code=why.args[1])

    do_GET = do_HEAD = do_POST = handle_one

    def route(self, parts: list[str], content: bytes):
        hub, token = self.server, self.headers.get("Authorization")
        match parts:
            case [""]:
                self.answer()
            case ["api", "validate-yaml"]:
                self.answer({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                self.create(json.loads(content))
            case ["api", "models", user, name, "branch", branch]:
                hub.models[f"{user}/{name}"].setdefault(branch, hub.models[f"{user}/{name}"]["main"])
                self.answer({})
            case ["api", "models", user, name, "preupload", _]:
                files = json.loads(content)["files"]
                self.answer({"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in files]})
            case ["api", "models", user, name, "commit", branch]:
                if token != f"Bearer {TOKEN}":
                    raise Refused(401, "RepoNotFound")
                new = hub.commit(f"{user}/{name}", branch, [json.loads(line) for line in content.splitlines()])
                self.answer({"commitUrl": f"{hub.url}/{user}/{name}/commit/{new}", "commitOid": new})
            case ["api", "models", user, name, "tree", revision, *below]:
                files = hub.commits[hub.find(f"{user}/{name}", revision, token)]
                inside = {path: file for path, file in files.items() if path.split("/")[: len(below)] == below}
                told = [dict(type="file", path=p, size=len(f), oid=etag(f)) for p, f in inside.items()]
                self.answer(told) if told or not below else self.answer(status=404, X_Error_Code="EntryNotFound")
            case ["api", "models", user, name, *rest]:
                commit = hub.find(f"{user}/{name}", rest[1] if rest else "main", token)
                self.answer(dict(id=f"{user}/{name}", sha=commit, siblings=[dict(rfilename=f) for f in hub.commits[commit]]))
            case [user, name, "resolve", revision, *path]:
                commit = hub.find(f"{user}/{name}", revision, token)
                file = hub.commits[commit].get("/".join(path))
                if file is None:
                    self.answer(status=404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                else:
                    self.answer(file, ETag=f'"{etag(file)}"', X_Repo_Commit=commit)
            case _:
                raise Refused(404, "RepoNotFound")

    def create(self, told: dict):
        "Make a model."
        hub, name = self.server, f"{told.get('organization') or 'user'}/{told['name']}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "RepoNotFound")
        if name in hub.models:
            self.answer({"url": f"{hub.url}/{name}"}, 409)
            return
        hub.models[name] = {}
        hub.commit(name, "main", [])
        if told.get("private") or told.get("visibility") == "private":
            hub.private.add(name)
        self.answer({"url": f"{hub.url}/{name}"})
