# ruff: noqa: E501, SIM905 (tables of words and forms)
"""Texts with personal data at known places, in both languages, and traps without any; by seed.

Written without the detectors: check digits, formats and word lists are its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta

PER_KIND = 240
AREAS = [
    "110105",
    "310115",
    "440305",
    "330106",
    "510107",
    "420111",
    "610113",
    "320508",
    "350203",
    "210202",
    "500103",
    "650102",
]
SURNAMES = list(
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何林高梁郑罗宋谢唐韩曹许邓萧冯曾程蔡彭潘袁于董余苏叶吕魏蒋田杜丁沈姜范江傅钟卢汪戴崔任陆廖姚方金邱夏谭韦贾邹石熊孟秦阎薛侯雷白龙段郝孔邵史毛常万顾赖武康贺严尹钱施牛洪龚"
)
SURNAMES += ["欧阳", "上官", "司马", "诸葛"]
GIVEN = list(
    "伟芳娜秀敏静丽强磊军洋勇艳杰娟涛明超霞平刚桂文辉玲红梅建国华志林海波玉萍晓东宇浩鹏飞斌博佳雪琴倩婷颖慧莉洁云莲真雅荣爱香月莺媛瑞凡嘉琼珍龙成康星天达安中进有和彪诚先震振思群豪心邦承乐绍松善厚庆友裕河哲亮政谦亨奇轮翰朗伯宏言若鸣朋梓涵子轩欣怡诗琪雨泽晨"
)
FIRST = "James Mary John Patricia Robert Jennifer Michael Linda William Elizabeth David Barbara Richard Susan Joseph Sarah Thomas Karen Emma Daniel Olivia Wei Priya Ahmed".split()
LAST = "Smith Johnson Williams Brown Jones Garcia Miller Davis Rodriguez Wilson Anderson Taylor Moore Jackson Martin Lee Thompson White Harris Clark Lewis Zhang Patel O'Brien".split()
PLACES = [
    "北京市海淀区",
    "北京市朝阳区",
    "上海市浦东新区",
    "上海市徐汇区",
    "广东省深圳市南山区",
    "广东省广州市天河区",
    "浙江省杭州市西湖区",
    "江苏省苏州市吴中区",
    "四川省成都市武侯区",
    "湖北省武汉市洪山区",
    "陕西省西安市雁塔区",
    "福建省厦门市思明区",
    "山东省青岛市市南区",
    "重庆市渝中区",
    "湖南省长沙市岳麓区",
    "辽宁省大连市中山区",
    "天津市和平区",
    "河南省郑州市金水区",
    "云南省昆明市五华区",
    "广西壮族自治区南宁市青秀区",
]
ROADS = [
    "中山路",
    "人民路",
    "解放大道",
    "建设路",
    "和平街",
    "学院路",
    "科技园南路",
    "文三路",
    "长江东路",
    "金水大街",
    "幸福巷",
    "光华路",
    "龙华中路",
    "花园街",
    "望京西路",
]
STREETS = [
    "Maple Street",
    "Oak Avenue",
    "Washington Boulevard",
    "Elm Road",
    "Sunset Drive",
    "Park Lane",
    "Lake Shore Drive",
    "King's Road",
    "5th Avenue",
    "Martin Luther King Blvd",
    "Cedar Ct",
    "N. Main St",
]
CITIES = [
    "Springfield, IL 62704",
    "Austin, TX 78701",
    "Portland, OR 97205",
    "Boston, MA 02108",
    "Denver, CO 80203-1234",
    "Seattle, WA",
]


@dataclass(frozen=True)
class Planted:
    """A text, and where which type of data stands in it."""

    text: str
    start: int
    end: int
    type: str
    language: str


def resident_id(r: random.Random) -> str:
    day = date(1950, 1, 1) + timedelta(r.randrange(20000))
    body = f"{r.choice(AREAS)}{day:%Y%m%d}{r.randrange(1000):03d}"
    weights = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]
    check = "10X98765432"[sum(int(d) * w for d, w in zip(body, weights, strict=True)) % 11]
    return r.choice(
        [body + check, body + check, body + check, body + check.lower(), f"{body[:6]} {body[6:14]} {body[14:]}{check}"]
    )


def old_resident_id(r: random.Random) -> str:
    day = date(1950, 1, 1) + timedelta(r.randrange(15000))
    return f"{r.choice(AREAS)}{day:%y%m%d}{r.randrange(1000):03d}"


def with_luhn(body: str) -> str:
    total = 0
    for place, digit in enumerate(reversed(body)):
        n = int(digit) * (2 if place % 2 == 0 else 1)
        total += n - 9 if n > 9 else n
    return body + str(-total % 10)


def bank_card(r: random.Random) -> str:
    first, size = r.choice(
        [
            ("622202", 19),
            ("621700", 19),
            ("622588", 16),
            ("4", 16),
            ("4", 13),
            ("5" + r.choice("12345"), 16),
            ("37", 15),
            ("6011", 16),
            ("3528", 16),
            ("6225", 17),
            ("6228", 18),
        ]
    )
    number = with_luhn(first + "".join(r.choice("0123456789") for _ in range(size - len(first) - 1)))
    form = r.randrange(3)
    if form == 0 or size == 13:
        return number
    if size == 15:
        return f"{number[:4]} {number[4:10]} {number[10:]}"
    return (" " if form == 1 else "-").join(number[i : i + 4] for i in range(0, size, 4))


def mobile(r: random.Random) -> str:
    n = r.choice("3456789")
    n = f"1{n}{r.randrange(10**9):09d}"
    prefix = r.choice(["", "", "", "+86", "+86 ", "0086", "0086-", "86-", "(+86)", "+86-"])
    return prefix + r.choice([n, n, f"{n[:3]} {n[3:7]} {n[7:]}", f"{n[:3]}-{n[3:7]}-{n[7:]}"])


def landline(r: random.Random) -> str:
    area = r.choice(["010", "021", "020", "0755", "0571", "025", "028", "027", "0532", "0592"])
    n = f"{r.randrange(2, 9)}{r.randrange(10**7):07d}"
    return r.choice(
        [f"{area}-{n}", f"({area}){n}", f"（{area}）{n}", f"{area} {n}", f"{area}-{n[:4]}-{n[4:]}", f"{area}{n}"]
    )


def american(r: random.Random) -> str:
    a, b, c = (
        f"{r.randrange(2, 10)}{r.randrange(100):02d}",
        f"{r.randrange(2, 10)}{r.randrange(100):02d}",
        f"{r.randrange(10**4):04d}",
    )
    return r.choice(
        [
            f"({a}) {b}-{c}",
            f"{a}-{b}-{c}",
            f"{a}.{b}.{c}",
            f"+1 {a} {b} {c}",
            f"+1-{a}-{b}-{c}",
            f"1-{a}-{b}-{c}",
            f"+1 ({a}) {b}-{c}",
        ]
    )


def international(r: random.Random) -> str:
    n = "".join(r.choice("123456789") for _ in range(10))
    return r.choice(
        [
            f"+44 20 {n[:4]} {n[4:8]}",
            f"+44 7{n[:3]} {n[3:9]}",
            f"+49 30 {n[:8]}",
            f"+33 1 {n[:2]} {n[2:4]} {n[4:6]} {n[6:8]}",
            f"+81-3-{n[:4]}-{n[4:8]}",
            f"+91 {n[:5]} {n[5:]}",
            f"+852 {n[:4]} {n[4:8]}",
            f"+61 2 {n[:4]} {n[4:8]}",
            f"+65{n[:8]}",
            f"+7 ({n[:3]}) {n[3:6]}-{n[6:8]}-{n[8:]}",
        ]
    )


def email(r: random.Random) -> str:
    user = r.choice(
        [
            r.choice(FIRST).lower() + "." + r.choice(LAST).lower().replace("'", ""),
            f"user_{r.randrange(1000)}",
            str(r.randrange(10**5, 10**10)),
            f"a{r.randrange(99)}+news",
            f"Info-{r.randrange(9)}",
        ]
    )
    return (
        user
        + "@"
        + r.choice(
            [
                "gmail.com",
                "qq.com",
                "163.com",
                "mail.company.co.uk",
                "tsinghua.edu.cn",
                "sub.domain.org",
                "startup.io",
                "uni-muenchen.de",
                "foxmail.com",
                "corp.example-inc.com",
            ]
        )
    )


def ipv4(r: random.Random) -> str:
    return ".".join(
        str(n)
        for n in (
            r.choice([8, 10, 39, 58, 101, 114, 172, 192, 203, 218]),
            r.randrange(10, 256),
            r.randrange(256),
            r.randrange(1, 255),
        )
    )


def ipv6(r: random.Random) -> str:
    g = [f"{r.randrange(1, 65536):x}" for _ in range(8)]
    g[0] = r.choice(["2001", "2400", "240e", "2a02", "fe80"])
    return r.choice(
        [":".join(g), f"{g[0]}:{g[1]}::{g[2]}", f"{g[0]}:{g[1]}:{g[2]}::{g[3]}:{g[4]}", f"{g[0]}::{g[2]}".upper()]
    )


def passport(r: random.Random) -> str:
    n = f"{r.randrange(10**8):08d}"
    return r.choice([f"E{n}", f"G{n}", f"D{n}", f"P{n}", f"S{n}", f"E{r.choice('ABCDEFGH')}{n[:7]}"])


def any_passport(r: random.Random) -> str:
    n = f"{r.randrange(1, 10)}{r.randrange(10**8):08d}"
    return r.choice([passport(r), n, f"{r.choice('ABCKLM')}{n[:8]}", f"{r.choice(['XA', 'TK', 'PA'])}{n[:7]}"])


def plate(r: random.Random) -> str:
    head = r.choice("京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼") + r.choice("ABCDEFGHJK")
    tail = r.choice(
        [
            f"{r.randrange(10**5):05d}",
            f"{r.choice('ABCDEFGH')}{r.randrange(10**4):04d}",
            f"{r.randrange(10**3):03d}{r.choice('ABCD')}{r.choice('WXYZ')}",
            f"D{r.randrange(10**5):05d}",
            f"F{r.choice('ABC')}{r.randrange(10**4):04d}",
            f"{r.randrange(10**5):05d}D",
            f"{r.randrange(10**4):04d}学",
        ]
    )
    return head + r.choice(["", "", "·", " ", "-"]) + tail


def wechat(r: random.Random) -> str:
    word = "".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(r.randrange(4, 9)))
    return r.choice(
        [
            f"{word}_{r.randrange(1000):03d}",
            f"{word}{r.randrange(10**4):04d}",
            f"wxid_{word}{r.randrange(100):02d}",
            f"{word}-{r.randrange(10**4):04d}",
        ]
    )


def qq(r: random.Random) -> str:
    return str(r.randrange(10**5, 10**10))


def name_zh(r: random.Random) -> str:
    return r.choice(SURNAMES) + "".join(r.choice(GIVEN) for _ in range(r.choice([1, 2, 2, 2])))


def name_en(r: random.Random) -> str:
    return r.choice(
        [f"{r.choice(FIRST)} {r.choice(LAST)}", f"{r.choice(FIRST)} {r.choice('ABCDEFGH')}. {r.choice(LAST)}"]
    )


def address_zh(r: random.Random) -> str:
    house = f"{r.choice(ROADS)}{r.randrange(1, 999)}号"
    tail = r.choice(
        [
            "",
            f"{r.randrange(1, 30)}栋{r.randrange(101, 2900)}室",
            f"{r.randrange(1, 9)}号楼{r.randrange(1, 6)}单元{r.randrange(101, 999)}室",
            f"阳光小区{r.randrange(1, 20)}幢{r.randrange(101, 999)}",
            f"创新大厦{r.randrange(2, 30)}层",
        ]
    )
    return r.choice(PLACES) + house + tail


def address_en(r: random.Random) -> str:
    unit = r.choice(
        ["", "", f", Apt {r.randrange(1, 99)}", f" Suite {r.randrange(100, 999)}", f", Unit {r.randrange(1, 20)}B"]
    )
    return f"{r.randrange(1, 9999)} {r.choice(STREETS)}{unit}, {r.choice(CITIES)}"


PHONE_ZH = [
    "我的手机号是{}，请尽快联系",
    "联系电话：{}",
    "请拨打{}咨询",
    "电话{}转张老师",
    "客户预留号码为{}。",
    "{}（微信同号）",
    "发货前请联系{}谢谢",
    "有事打{}！",
    "手机:{},备用",
    "尾款问题致电 {} 处理",
]
PHONE_EN = [
    "Call me at {} tomorrow.",
    "My phone number is {}.",
    "Phone: {}",
    "You can reach him on {}, thanks",
    "Tel. {} (office)",
    "Please text {} when done.",
    "contact: {}",
    "Mobile {}; leave a message",
    "<td>{}</td> is her number",
    "fax {} or mail",
]
ID_ZH = [
    "身份证号码：{}",
    "他的身份证是{}，已核验",
    "证件号{}的客户",
    "公民身份号码{}。",
    "张先生（{}）已实名",
    "实名信息{}通过",
]
ID_EN = [
    "Chinese ID {} was verified",
    "Resident identity card no. {}.",
    "ID number: {}",
    "her national id is {}, see file",
    "document {} (PRC)",
]
CARD_ZH = [
    "银行卡号：{}",
    "请转账到{}，户名见下",
    "卡号{}已冻结",
    "信用卡 {} 的账单",
    "我的储蓄卡是{}。",
    "收款账号：{}（招商银行）",
]
CARD_EN = [
    "My card number is {}.",
    "Card: {} exp 12/27",
    "charged to {} yesterday",
    "credit card {} was declined",
    "pay with {}, please",
    "Visa {} on file",
]
MAIL_ZH = ["邮箱：{}", "请发送至{}谢谢", "我的邮箱是{}，请查收", "联系{}。", "（{}）", "邮件{}已退回"]
MAIL_EN = ["Email: {}", "write to {}.", "<{}> wrote:", "mailto:{}", "contact {} for help", "cc {}; bcc none"]
IP_ZH = ["来自IP{}的访问", "服务器地址：{}", "登录IP为{}，异常", "主机 {} 已下线", "他用{}登录", "请求来源 {}。"]
IP_EN = [
    "Login from {} failed",
    "client IP: {}",
    "host {} is down",
    "ping {}",
    "http://{}/index",
    "{} - - [10/Oct/2024]",
]
PASS_ZH = ["护照号码：{}", "护照号{}", "持护照{}入境", "护照：{}，有效", "护照编号为{}。", "中国护照 {}"]
PASS_EN = [
    "Passport No. {}",
    "passport number: {}",
    "Passport: {}",
    "her passport is {}.",
    "passport {} was issued",
    "Passport # {}",
]
PLATE_ZH = ["车牌{}的车主请挪车", "车牌号：{}", "一辆{}逆行", "驾驶{}小型轿车", "号牌为{}。", "（{}）违停"]
PLATE_EN = [
    "The car with plate {} left.",
    "License plate: {}",
    "vehicle {} was towed",
    "plate no. {};",
    "a Tesla ({}) parked",
    "Registration {}",
]
WX_ZH = ["微信：{}", "加我微信{}", "微信号{}，备注来意", "微信号：{}", "加微信 {} 进群", "WX: {}", "微信是{}"]
WX_EN = ["WeChat: {}", "WeChat ID: {}", "my WeChat is {}", "add me on WeChat {}", "wechat id {}", "Weixin: {}"]
QQ_ZH = ["QQ：{}", "加QQ{}", "QQ号{}", "我的QQ是{}", "QQ群：{}", "qq:{}", "扣扣{}"]
QQ_EN = ["QQ: {}", "my QQ is {}", "QQ number {}", "add QQ {} please", "QQ ID: {}"]
NAME_ZH = [
    "姓名：{}",
    "患者{}，男，45岁",
    "联系人：{}",
    "我叫{}，来自外地",
    "收件人{}，电话见下",
    "请{}先生签字",
    "{}女士您好",
    "申请人：{}（签字）",
    "原告{}诉被告",
    "客户{}于昨日投诉",
    "{}，女，1985年出生",
    "法定代表人：{}。",
    "本人{}，现申请",
    "{}教授的讲座",
]
NAME_EN = [
    "My name is {}.",
    "Name: {}",
    "Mr. {} called",
    "Dear {},",
    "Patient: {}",
    "Dr. {} will see you",
    "Ms. {} left early",
    "Full name: {}",
    "Sincerely,\n{}",
    "From: {} <x",
    "Customer: {}",
    "Contact: {}, ext",
    "Mrs {} signed",
    "Prof. {} wrote",
]
ADDR_ZH = [
    "地址：{}",
    "收货地址：{}。",
    "我住在{}",
    "请寄到{}，谢谢",
    "家住{}的居民",
    "公司位于{}",
    "现住址为{}，电话",
    "户籍：{}",
    "快递送到{}就行",
    "案发地在{}附近",
]
ADDR_EN = ["Address: {}", "I live at {}.", "Ship to {} please", "Our office is at {}", "send it to {}.", "born at {}"]

Maker = Callable[[random.Random], str]
KINDS: list[tuple[str, str, Maker, list[str]]] = [
    ("phone", "zh", mobile, PHONE_ZH), ("phone", "zh", landline, PHONE_ZH), ("phone", "en", mobile, PHONE_EN),
    ("phone", "en", american, PHONE_EN), ("phone", "en", international, PHONE_EN), ("phone", "zh", international, PHONE_ZH),
    ("cn_resident_id", "zh", resident_id, ID_ZH), ("cn_resident_id", "en", resident_id, ID_EN),
    ("cn_resident_id", "zh", old_resident_id, ID_ZH), ("cn_resident_id", "en", old_resident_id, ID_EN),
    ("bank_card", "zh", bank_card, CARD_ZH), ("bank_card", "en", bank_card, CARD_EN),
    ("email", "zh", email, MAIL_ZH), ("email", "en", email, MAIL_EN),
    ("ipv4", "zh", ipv4, IP_ZH), ("ipv4", "en", ipv4, IP_EN), ("ipv6", "zh", ipv6, IP_ZH), ("ipv6", "en", ipv6, IP_EN[:4]),
    ("passport", "zh", passport, PASS_ZH), ("passport", "en", any_passport, PASS_EN),
    ("plate", "zh", plate, PLATE_ZH), ("plate", "en", plate, PLATE_EN),
    ("wechat", "zh", wechat, WX_ZH), ("wechat", "en", wechat, WX_EN), ("qq", "zh", qq, QQ_ZH), ("qq", "en", qq, QQ_EN),
    ("name", "zh", name_zh, NAME_ZH), ("name", "en", name_en, NAME_EN),
    ("address", "zh", address_zh, ADDR_ZH), ("address", "en", address_en, ADDR_EN),
]  # fmt: skip
BEFORE = {
    "zh": ["", "昨天下午的记录。", "备注：", "以下内容由客服整理，", "【工单】"],
    "en": ["", "Note: ", "As discussed yesterday. ", "FYI - ", "Hello,\n"],
}
AFTER = {
    "zh": ["", "。", "，请核实", "\n下一条", "；其他略"],
    "en": ["", " Thanks.", "\nnext line", " (see above)", " - end"],
}


def planted(seed: int = 1) -> Iterator[Planted]:
    """At least 240 positives of every kind, each in one of several contexts of its language."""
    r = random.Random(seed)
    for type, language, make, contexts in KINDS:
        for n in range(PER_KIND):
            value = make(r)
            before, after = contexts[n % len(contexts)].split("{}")
            lead = r.choice(BEFORE[language]) + before
            yield Planted(
                lead + value + after + r.choice(AFTER[language]), len(lead), len(lead) + len(value), type, language
            )


def _spoil(number: str, r: random.Random) -> str:
    """The number with another last digit."""
    return number[:-1] + str((int(number[-1].replace("X", "1").replace("x", "1")) + r.randrange(1, 9)) % 10)


def invalid_numbers(seed: int = 2) -> Iterator[str]:
    """Resident ids and cards whose check digit is wrong, each in the contexts that announce a right one."""
    r = random.Random(seed)
    for n in range(2 * PER_KIND):
        number = resident_id(r).replace(" ", "")
        right = number[-1].upper()
        wrong = r.choice([d for d in "0123456789" if d != right])
        yield r.choice(ID_ZH + ID_EN).replace("{}", number[:-1] + wrong)
        card = "".join(c for c in bank_card(r) if c.isdigit())
        yield r.choice(CARD_ZH + CARD_EN).replace("{}", _other_end(card, n))


def _other_end(card: str, n: int) -> str:
    return card[:-1] + str((int(card[-1]) + 1 + n % 9) % 10)


def traps(seed: int = 3) -> Iterator[tuple[str, str]]:
    """(kind of trap, text): numbers and code that look like personal data and are none."""
    r = random.Random(seed)
    d = lambda n: "".join(r.choice("0123456789") for _ in range(n))  # noqa: E731
    h = lambda n: "".join(r.choice("0123456789abcdef") for _ in range(n))  # noqa: E731
    makers: dict[str, Callable[[], str]] = {
        "order number": lambda: r.choice(["订单号：{}", "订单编号{}已发货", "order no. {}", "Invoice #{}", "运单号 {}", "tracking number: {}", "流水号：{}"]).format(r.choice(["1" + r.choice("3456789") + d(9), "2024" + d(14), d(20), d(12)])),
        "timestamp": lambda: r.choice([f"ts={1600000000 + r.randrange(10**8)}", f'"created": {1600000000000 + r.randrange(10**11)}', f"{r.randrange(2000, 2030)}-{r.randrange(1, 13):02d}-{r.randrange(1, 29):02d} {r.randrange(24):02d}:{r.randrange(60):02d}:{r.randrange(60):02d}.{d(6)}", f"2024{r.randrange(1, 13):02d}{r.randrange(1, 29):02d}{r.randrange(24):02d}{d(4)}"]),
        "version": lambda: r.choice(["version {}", "v{}", "Chrome/{}", "版本{}", "pkg=={}", "release {} is out", "foo-{}.tar.gz"]).format(".".join(str(r.randrange(0, 30)) for _ in range(4))),
        "hash": lambda: r.choice([h(40), h(64), h(32), f"{h(8)}-{h(4)}-4{h(3)}-a{h(3)}-{h(12)}", f"sha256:{h(64)}", f"commit {h(12)}", f"0x{d(16)}"]),
        "float": lambda: r.choice([f"{r.random()}", f"3.{d(15)}", f"{d(2)}.{d(13)}", f"1.{d(11)}e-05", f"[0.{d(12)}, -{d(1)}.{d(14)}]"]),
        "isbn": lambda: r.choice([f"ISBN 978-7-{d(3)}-{d(5)}-{d(1)}", f"ISBN: 978{d(10)}", f"978-0-{d(2)}-{d(6)}-{d(1)}"]),
        "amount": lambda: r.choice([f"¥{r.randrange(1, 999)},{d(3)},{d(3)},{d(3)}", f"${d(3)},{d(3)}.{d(2)}", f"{r.randrange(1, 9)},{d(3)},{d(3)} 元", f"总额{r.randrange(1, 99)},{d(3)},{d(3)}.{d(2)}元", f"人口 {r.randrange(1, 9)}{d(8)} 人"]),
        "code": lambda: r.choice(["@dataclass\nclass A: ...", "@app.route('/x')", "x = a@b", "C = A @ B.T", "y = (W@x).sum()", "git@github.com:org/repo.git", "user@host:/srv/data/file", "std::vector<int> v", "a[::2], b[1::3]", "import a::b::c", "logo@2x.png", "npm i lodash@4.17.21", "@types/node@18.2.0", "q@k.transpose(-2, -1)", "key: ${{ env.X }}@v3.1", "Foo::bar(dead::beef)", "for i in range(1000000, 2000000):", "127.0.0.1:8080", "0.0.0.0", "255.255.255.0", "ssh root@10", "uses: actions/checkout@v4.1.2", "pip install a@b"]) + f"  # {r.randrange(99)}",
        "url": lambda: r.choice([f"https://item.example.com/p/1{r.choice('3578')}{d(9)}", f"https://x.cn/view?id=1{r.choice('3578')}{d(9)}&t={d(13)}", f"http://a.org/archive/{d(16)}.html", f"https://weibo.com/{d(10)}/{d(16)}"]),
        "table": lambda: " ".join(str(r.randrange(100, 9999)) for _ in range(r.randrange(4, 9))),
        "zh words": lambda: r.choice(["患者应该多休息", "联系人：未知", "姓名：待定", "客户高度评价了服务", "6月12号下午开会", "地铁12号线换乘", "第3号台风登陆", "用户方便时再来", "医生常常加班", "高度重视安全工作", "老师和同学们好", "微信支付已到账", "微信公众号文章", "QQ音乐下载", "护照办理流程", "一路平安", "红军走过的路有3条", "男女平等", "请负责人尽快处理", "原告诉称", "小区里有5栋楼", "周三先生产再验收", "电话会议改到10点", "5号电池"]),
        "en words": lambda: r.choice(["Name: Apache License", "name: build-and-test", "From: Python 3.8 on", "Dear Customer,", "Mr. and Mrs.", "The Dr. is in", "passport control is open", "I live 5 miles away", "2 Way Radio", "my name is not important", "the plate is hot", "WeChat payments are popular", "QQ music", "From: the team", "contact: none", "Contact Us", "Sincerely yours", "Street View 3 is new", "Section 3 Main Road Map", "Patient: None", "Dear Sir or Madam,"]),
    }  # fmt: skip
    for kind, make in makers.items():
        for _ in range(100):
            yield kind, make()


HARD_NAMES_ZH = [
    "昨天{}打电话来投诉",
    "据{}介绍，项目进展顺利",
    "会议由{}主持",
    "{}说他不来了",
    "我和{}是大学同学",
    "这份报告是{}写的",
    "感谢{}的帮助",
    "{}同志主持会议",
    "导师是{}",
    "抄送：{}、行政部",
]
HARD_NAMES_EN = [
    "Yesterday {} called to complain.",
    "I met {} at the station.",
    "{} said he would not come.",
    "Thanks to {} for the help",
    "Ask {} about the report",
    "cc: {}",
    "{}, aged 45, was found",
    "The report was written by {}.",
]
HARD_ADDR_ZH = ["我家在{}那边", "快递放{}门口", "搬到{}去了", "{}着火了"]
HARD_ADDR_EN = ["We moved from {} last year", "fire at {} overnight", "pick me up, {}"]


def hard(seed: int = 4) -> Iterator[Planted]:
    """Names in running text that nothing announces, and addresses without divisions or in loose notation."""
    r = random.Random(seed)

    def short_zh(r: random.Random) -> str:
        return r.choice(
            [
                f"{r.choice(ROADS)}{r.randrange(1, 999)}号",
                f"翠苑小区{r.randrange(1, 30)}栋{r.randrange(101, 999)}",
                f"{r.choice(PLACES)[-3:]}{r.choice(ROADS)}{r.randrange(1, 99)}弄{r.randrange(1, 40)}号",
                f"{r.choice(PLACES)}黄花镇长红村{r.randrange(1, 12)}组",
            ]
        )

    def short_en(r: random.Random) -> str:
        return r.choice(
            [
                f"{r.randrange(1, 999)} {r.choice(STREETS)}",
                f"Flat {r.randrange(1, 20)}, {r.randrange(1, 200)} High Street, London",
                f"{r.randrange(1, 999)} {r.choice(STREETS).lower()}",
            ]
        )

    sets: list[tuple[str, str, Maker, list[str]]] = [("name", "zh", name_zh, HARD_NAMES_ZH), ("name", "en", name_en, HARD_NAMES_EN), ("address", "zh", short_zh, HARD_ADDR_ZH), ("address", "en", short_en, HARD_ADDR_EN)]  # fmt: skip
    for type, language, make, contexts in sets:
        for n in range(PER_KIND):
            before, after = contexts[n % len(contexts)].split("{}")
            value = make(r)
            yield Planted(before + value + after, len(before), len(before) + len(value), type, language)
