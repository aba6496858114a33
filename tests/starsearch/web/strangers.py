"""What strangers may write: markup that runs, loads, frames, submits, styles, breaks out, or hides. Each must be shown and do nothing.

Written for this project after the classes that browsers' parsers distinguish (https://html.spec.whatwg.org/#parsing): every way in
which text could leave the place that a page gives it.
"""

LOADED = "https://elsewhere.invalid/x"

VECTORS = (
    # elements that run
    "<script>alert(1)</script>",
    "<ScRiPt SrC=//elsewhere.invalid/x></sCrIpT>",
    "<script\n>alert(1)</script\t>",
    "<script>alert(1)<!--",
    "</title><script>alert(1)</script>",
    "</textarea><script>alert(1)</script>",
    "</mark></bdi></a></h2><script>alert(1)</script>",
    "--><script>alert(1)</script><!--",
    "]]><script>alert(1)</script><![CDATA[",
    "<noscript><p title='</noscript><script>alert(1)</script>'>",
    "<template><script>alert(1)</script></template>",
    # attributes that run
    "<img src=x onerror=alert(1)>",
    "<img src=x onerror='alert`1`'",
    "<svg onload=alert(1)>",
    "<svg/onload=alert(1)//",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<svg><set attributeName=onmouseover to=alert(1)>",
    "<body onload=alert(1)>",
    "<details open ontoggle=alert(1)>x</details>",
    "<input autofocus onfocus=alert(1)>",
    "<select autofocus onfocus=alert(1)><option>x",
    "<video><source onerror=alert(1)></video>",
    "<audio src onloadstart=alert(1)>",
    "<marquee onstart=alert(1)>x</marquee>",
    "<div onpointerover=alert(1) style=position:fixed;inset:0>x</div>",
    "<x contenteditable onblur=alert(1) tabindex=1 autofocus>x",
    "<a href=# onclick=alert(1) autofocus>x</a>",
    # breaking out of attributes
    '" onmouseover=alert(1) x="',
    "' onfocus=alert(1) autofocus x='",
    '"><img src=x onerror=alert(1)>',
    "`onerror=alert(1)",
    '" hx-on:load="alert(1)',
    "<div hx-get=/status hx-trigger=load hx-on::after-request=alert(1)></div>",
    "<div data-hx-get=https://elsewhere.invalid/x data-hx-trigger=load></div>",
    # addresses that run or load
    "<a href=javascript:alert(1)>x</a>",
    "<a href='jav&#x09;ascript:alert(1)'>x</a>",
    "<a href=data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==>x</a>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    f"<img src={LOADED}>",
    f"<link rel=stylesheet href={LOADED}>",
    f"<object data={LOADED}></object><embed src={LOADED}>",
    f"<base href={LOADED}/>",
    f"<meta http-equiv=refresh content='0;url={LOADED}'>",
    f"<form action={LOADED}><button autofocus>x</button></form>",
    f"<style>@import '{LOADED}';body{{background:url({LOADED})}}</style>",
    f"![x]({LOADED}) [x](javascript:alert(1)) <{LOADED}>",
    # namespaces and parsers that disagree
    "<math><mtext><table><mglyph><style><!--</style><img src=x onerror=alert(1)>",
    "<svg><style><img src=x onerror=alert(1)></style></svg>",
    "<svg><foreignObject><script>alert(1)</script></foreignObject></svg>",
    "<table><td background=javascript:alert(1)>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "\\u003cscript\\u003ealert(1)\\u003c/script\\u003e",
    "%3Cscript%3Ealert(1)%3C/script%3E",
    "+ADw-script+AD4-alert(1)+ADw-/script+AD4-",
    "\uff1cscript\uff1ealert(1)\uff1c/script\uff1e",
    "<scr\u200bipt>alert(1)</scr\u200bipt>",
    # templates and expressions
    "{{ 7*7 }}{% raw %}{{ cycler.__init__.__globals__ }}",
    "${alert(1)} #{alert(1)} <%= alert(1) %> {{constructor.constructor('alert(1)')()}}",
    # text that hides or pretends
    "\u202egnp.exe \u2066isolated\u2069 \x1b[31mred\x1b]8;;https://elsewhere.invalid/x\x07link",
    "\U000e0061\U000e0062 a\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307" * 20,
)
