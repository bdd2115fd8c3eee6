"""The Grafana page as a picture: every query of it is asked, with its variables filled in, and drawn."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import pytest
from PIL import Image

from cluster.draw_dashboard import Window, draw, main
from cluster.make_dashboard import dashboard


class Prometheus(BaseHTTPRequestHandler):
    """Answers each query with one series, remembers it, and refuses one that it is told to."""

    asked: list[str]
    refused: str

    def do_GET(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlparse(self.path).query).items()}
        self.asked.append(query["query"])
        bad = self.refused and self.refused in query["query"]
        labels = {"run": "a", "sampler": "sampler-0", "kind": "lease"}
        values = [[float(query.get("start", 0)) + 5 * tick, str(0.1 * tick)] for tick in range(3)]
        series = {"metric": labels, "values": values, "value": [0, "3"]}
        result = {"error": "parse error"} if bad else {"data": {"result": [series]}}
        body = json.dumps(result).encode()
        self.send_response(400 if bad else 200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def prometheus():
    handler = type("Handler", (Prometheus,), {"asked": [], "refused": ""})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def test_every_query_of_the_page_is_asked_and_drawn(prometheus, tmp_path, capsys):
    address, handler = prometheus
    assert main([address, str(tmp_path / "page.png"), "--minutes", "10", "--run", "small.*"]) == 0
    expected = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    assert len(handler.asked) == len(expected)
    assert not any("$" in query for query in handler.asked)
    assert all('run=~"small.*"' in query for query in handler.asked)
    assert any("[600s]" in query for query in handler.asked)
    assert "no panel" in capsys.readouterr().out
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.height > picture.width > 1000


def test_a_legend_names_what_tells_the_series_apart(prometheus):
    window = Window(prometheus[0], 0.0, 60.0)
    target = {"expr": 'x{run=~"$run"}', "legendFormat": "{{sampler}} ({{run}}{{none}})"}
    assert window.series(target) == [("sampler-0 (a)", [0.0, 5 / 60, 10 / 60], [0.0, 0.1, 0.2])]
    assert window.series({**target, "instant": True}) == [("sampler-0 (a)", [0.0], [3.0])]


def test_a_query_that_prometheus_refuses_is_named(prometheus, tmp_path):
    prometheus[1].refused = "ray_larpo_train_loss"
    with pytest.raises(ValueError, match=r"max by \(run\) \(ray_larpo_train_loss.*parse error"):
        draw(Window(prometheus[0], 0.0, 60.0), dashboard(), tmp_path / "page.png")
