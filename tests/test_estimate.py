"""The estimate of a prompt, held against exact counts."""

import json
import random

import pytest
import toktok

from tokenrouter.metering.estimate import estimate_text_tokens

_RNG = random.Random(11)
_NAMES = ["order", "invoice", "parser", "buffer", "session", "widget", "ledger", "report", "cursor", "station"]


def _exact(text: str) -> int:
    return toktok.batch_count([text], "o200k_base", threads=1)[0]


def _vary(template: str, count: int = 40) -> str:
    return "".join(
        template.replace("NAME", _RNG.choice(_NAMES)).replace("NUM", str(_RNG.randint(1, 9999))) for _ in range(count)
    )


_ROWS = [{"id": i, "name": _RNG.choice(_NAMES), "price": i * 1.37, "ok": i % 2 == 0} for i in range(60)]
IN_SCOPE = {
    "prose": _vary("The clerk placed the NAME on the desk and waited NUM minutes for an answer. "),
    "python": _vary(
        "def load_NAME(path: str) -> int:\n    with open(path) as handle:\n        return len(handle.read()) + NUM\n\n"
    ),
    "typescript": _vary(
        "export const getNAME = async (id: number): Promise<string> => {\n  return fetchItem(`NAME/${id}`, NUM);\n};\n"
    ),
    "c": _vary(
        "static int NAME_init(struct NAME *self)\n{\n\tif (!self)\n"
        "\t\treturn -EINVAL;\n\treturn self->count + NUM;\n}\n"
    ),
    "java": _vary(
        "public final class NAMEFactory {\n    private final int limit = NUM;\n"
        "    public String getName() { return name; }\n}\n"
    ),
    "go": _vary(
        "func (s *Server) NAME(w http.ResponseWriter) error {\n"
        "\tif err := s.run(NUM); err != nil {\n\t\treturn err\n\t}\n\treturn nil\n}\n"
    ),
    "rust": _vary("pub fn NAME(&self) -> Option<u32> {\n    self.items.iter().map(|x| x + NUM).max()\n}\n"),
    "sql": _vary("SELECT id, total FROM NAME WHERE total > NUM ORDER BY created_at DESC;\n"),
    "shell": _vary("for f in *.NAME; do\n  echo \"$f\" | sed -e 's/a/b/' > /tmp/NUM || exit 1\ndone\n"),
    "html": _vary('<div class="NAME row"><a href="/NAME/NUM">Open the NAME</a></div>\n'),
    "css": _vary(".NAME-box > a:hover {\n  margin: 0 NUMpx;\n  color: #a0b1c2;\n}\n"),
    "pretty json": json.dumps(_ROWS, indent=2),
    "compact json": json.dumps(_ROWS, separators=(",", ":")),
    "yaml": _vary("- name: NAME\n  port: NUM\n  options:\n    enabled: true\n"),
    "markdown": _vary(
        "## About the NAME\n\n- It runs `NAME --limit NUM` **twice**.\n- See [the notes](docs/NAME.md).\n\n"
    ),
    "table of numbers": "\n".join(",".join(f"{_RNG.uniform(0, 500):.3f}" for _ in range(6)) for _ in range(50)),
    "minified js": _vary('function a(t,e){return t&&e?t.NAME(e,NUM):null}var n=a("NAME",[1,2]);'),
    "log lines": _vary("2031-04-05T06:07:08Z INFO [worker-3] NAME finished in NUM ms\n"),
    "stack trace": _vary("\tat org.sample.web.NAMEHandler.handleRequest(NAMEHandler.java:NUM)\n"),
    "deep indent": _vary("                        if NAME:\n                            total += NUM\n"),
    "tabs": _vary("\t\t\tif NAME > NUM {\n\t\t\t\tbreak\n\t\t\t}\n"),
    "crlf": _vary("set NAME to NUM\r\nthen print the result\r\n"),
    "simplified chinese": _vary("他昨天在图书馆里看了NUM页书，然后和朋友一起去公园散步。天气很好，大家都很高兴。"),
    "traditional chinese": _vary("我們在車站等了NUM分鐘，後來決定搭公車回家。晚上的風很涼，街上的人不多。"),
    "japanese": _vary("昨日は友達とNUM時に駅で会って、新しい店でラーメンを食べました。とても美味しかったです。"),
    "korean": _vary("어제는 친구와 함께 도서관에서 책을 NUM쪽 읽었고, 저녁에는 공원을 산책했습니다."),
    "mixed": _vary("请先运行 NAME 命令, then check the output file (about NUM lines) 再继续下一步。"),
}
OUT_OF_SCOPE = {
    "russian": _vary("Вчера мы долго гуляли по набережной и говорили о будущем. "),
    "arabic": _vary("ذهبنا أمس إلى السوق واشترينا الخبز والفاكهة. "),
    "hindi": _vary("कल हम बाज़ार गए और ताज़े फल खरीदे। "),
    "thai": _vary("เมื่อวานเราไปตลาดและซื้อผลไม้สด "),
    "greek": _vary("Χθες πήγαμε στην αγορά και αγοράσαμε φρούτα. "),
    "emoji": "👩‍🚀🎉🦑" * 100,
    "hex": _RNG.randbytes(600).hex(),
    "random letters": "".join(_RNG.choices("abcdefghijklmnopqrstuvwxyz", k=2000)),
    "one letter": "a" * 3000,
    "spaces": " " * 3000,
    "zalgo": "".join(c + "".join(map(chr, _RNG.choices(range(0x300, 0x370), k=4))) for c in "lorem" * 60),
    "controls": "".join(map(chr, _RNG.choices(range(32), k=900))),
}


@pytest.mark.parametrize("name", IN_SCOPE)
def test_estimate_in_scope_lies_between_exact_and_twice_exact(name: str) -> None:
    exact = _exact(IN_SCOPE[name])
    assert exact > 200
    assert exact <= estimate_text_tokens(IN_SCOPE[name]) <= 2 * exact


@pytest.mark.parametrize("name", OUT_OF_SCOPE)
def test_estimate_out_of_scope_is_never_below_exact(name: str) -> None:
    assert estimate_text_tokens(OUT_OF_SCOPE[name]) >= _exact(OUT_OF_SCOPE[name])


@pytest.mark.parametrize("text", ["", "a", "\ud800", "\udfff\ud800x", "\x00", "\U0010ffff"])
def test_estimate_never_raises(text: str) -> None:
    assert estimate_text_tokens(text) >= 0
