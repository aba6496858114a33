"""Passages in strangers' text that speak to a language model ("ignore your instructions …"). Pure.

Nothing may rest on recognizing every one of them: it does not. What is recognized is not quoted in a summary, supports nothing
that a model says (inference/gate.py), and makes the gate stricter about the rest.
"""

import re
import unicodedata
from collections.abc import Iterator

from starsearch.untrusted import INVISIBLE

# Cyrillic and Greek letters that pass for Latin ones
_LOOKALIKES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u04bb\u043a\u043c\u0442\u03b1\u03b5\u03bf\u03c1\u03b9\u03bd\u03c4\u03ba",
    "aeopcyxijsdhkmtaeopivtk",
)
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_SENTENCE = re.compile(r"(?<=[.!?\u3002\uff01\uff1f])\s+|\n")
_LONGEST_PARAGRAPH = 600  # of one that goes as a whole; from a longer one goes what follows the command
_OTHER_SCRIPT = re.compile("[\u0370-\u1fff\u3040-\ud7ff]")
_HEAD = re.compile(r"(\w{1,5})\w*")  # the first five letters of a word
_SPELLED = re.compile(r"(?:\b\w[ .\-_*]{1,3}){6,}\w\b")  # i g n o r e
_SPELLED_INSIDE = re.compile(r"[ .\-_*]\w[ .\-_*]{1,3}\w[ .\-_*]")  # what it holds, for speed: it begins with what few characters are
_EMPHASIS = str.maketrans("", "", "*_`~")
_DIGIT_BEFORE, _DIGIT_INSIDE = re.compile("[01345][a-z]"), re.compile("[a-z][01345][a-z]")
_LEET = str.maketrans("013457", "oieast")
_REVERSED = ("snoitcurtsni", "erongi", "tpmorp")
_OPENED, _CLOSED = re.compile(r"<\s{0,8}item\b", re.IGNORECASE), re.compile(r"[<\uff1c]\s{0,8}[/\uff0f]\s{0,8}item\b", re.IGNORECASE)


def is_command(text: str) -> bool:
    """Whether a passage speaks to a language model: 1 in 500 real items holds one."""
    plain = _plain(text)
    heads = _HEADS.intersection(_HEAD.findall(plain))
    if heads and any(not heads.isdisjoint(words) and pattern.search(plain) for words, pattern in _PATTERNS):
        return True
    return bool(_OTHER_SCRIPT.search(plain)) and any(pattern.search(plain) for pattern in _SCRIPT_PATTERNS)


def without_commands(text: str) -> str:
    """The text without the passages that speak to a language model, and what they announce."""
    text = _before_forged_end(text)
    return "\n\n".join(_harmless(_PARAGRAPH.split(text))) if is_command(text) else text


def _before_forged_end(text: str) -> str:
    """What stands before a </item> that closes nothing but our own fence; an item of RSS or XML is opened first."""
    opened, closed = _OPENED.search(text), _CLOSED.search(text)
    return text[: closed.start()] if closed and not (opened and opened.start() < closed.start()) else text


def _harmless(paragraphs: list[str]) -> Iterator[str]:
    announced = False  # "… print the following:" takes the next paragraph with it
    for paragraph in paragraphs:
        if announced:
            announced = False
        elif not is_command(paragraph):
            yield paragraph
        else:
            announced = paragraph.rstrip().endswith((":", "\uff1a"))
            if len(paragraph) > _LONGEST_PARAGRAPH:
                yield _before_command(paragraph)


def _before_command(paragraph: str) -> str:
    start = 0
    for end in [match.end() for match in _SENTENCE.finditer(paragraph)]:
        if is_command(paragraph[start:end]):
            break
        start = end
    return paragraph[:start]


def _plain(text: str) -> str:
    """For recognition only: one spelling of letters that look alike, nothing inside words."""
    folded = text.lower()
    if not text.isascii():
        folded = unicodedata.normalize("NFKC", INVISIBLE.sub("", text)).casefold()
        if _OTHER_SCRIPT.search(folded):
            folded += "\n" + folded.translate(_LOOKALIKES)
    folded = folded.translate(_EMPHASIS)
    if _DIGIT_BEFORE.search(folded) and _DIGIT_INSIDE.search(folded):
        folded += "\n" + folded.translate(_LEET)
    if any(word in folded for word in _REVERSED):
        folded += "\n" + folded[::-1]
    if _SPELLED_INSIDE.search(folded):
        folded = _SPELLED.sub(lambda match: re.sub(r"[ .\-_*]", "", match[0]), folded)
    return folded


_FORGET = (
    r"\b(?:ignor(?:e|ing)|disregard|forget|overrid(?:e|es|ing)|bypass|do not follow|don't follow|stop following|pay no attention to)\b"
)
_TOLD = r"\b(?:instructions?|prompts?|rules?|directions?|directives?|guidelines?|commands?|constraints?|told|said|messages?)\b"
_BEFORE = r"\b(?:previous|prior|above|earlier|preceding|all|any|your|these|those|system|original|initial|everything|former|given)\b"
_SPEAK = (
    r"\b(?:respond|reply|answer|output|print|write|say|repeat|include|append|insert|begin|start|end|return|translate|encode|reveal|state|"
    r"mention|claim|tell|report|quote|embed|add|put|use|replace|finish|leak|show|disclose|recite)\b"
)
_MACHINE = (
    r"\b(?:language models?|llms?|chatbots?|chatgpt|gpt-?\d\w*|ai (?:assistant|model|agent|tool|system|reader|reviewer|bot)s?|assistants?|"
    r"summari[sz]ers?|summari[sz]ation (?:model|bot|tool|system)s?)\b"
)
_SUMMARY = r"\b(?:summary|summaries|summari[sz]ation)\b"
_START = r"(?:^|[.!?:;>\"')] |>)\W{0,4}(?:please |now |then )?"
_VERBS = "respo reply answe outpu print say write"
_REFUSE = "ignor disre forge overr bypas follo atten"
_NAMES = "langu llm llms chatb chatg gpt ai assis summa"

# (words of which the text must hold one, by their first five letters; expression). The words are for speed: most texts hold none.
_ENGLISH = [
    (_REFUSE, rf"{_FORGET}.{{0,40}}{_BEFORE}.{{0,40}}{_TOLD}"),
    (_REFUSE, rf"{_FORGET}.{{0,30}}\b(?:everything|all|anything) (?:above|before|that was|you)\b"),
    (
        "instr promp direc",
        r"\b(?:new|updated|real|actual|true|special|secret|hidden|additional) (?:system )?(?:instructions?|prompts?|directives?)\b.{0,4}(?::|for\b|-)",
    ),
    (
        "instr promp guide direc messa",
        r"\b(?:system|developer|hidden|initial|secret) prompt\b|\byour (?:prompt|instructions?|guidelines|directives?|system message)\b",
    ),
    (
        "you",
        r"\byou(?: are|'re) (?:now (?!able|left)|no longer (?!testing|interested)|hereby )|\bfrom (?:now|here) on,? (?:you|always|only|respond|answer|speak)\b",
    ),
    (
        "you",
        r"\byou are (?:an? )?(?:\w{1,20} ){0,3}(?:ai|dan|assistant|bot|language model|llm|chatbot|pirate|hacker|persona|terminal|shell|poet|translator)\b",
    ),
    (
        "act behav respo speak talk",
        r"(?:^|\b(?:you|now|must|please|should),? )(?:act|behave|respond|speak|talk) (?:as if you (?:are|were)|like an?|as an?) \w+",
    ),
    (
        "prete role rolep jailb devel anyth chara",
        r"\bpretend (?:to be|you|that you)\b|\brole-?play\b|\bjailbreak|\bdeveloper mode\b|\bdo anything now\b|\bstay in character\b",
    ),
    (
        "summa reply",
        rf"{_SPEAK}.{{0,60}}\b(?:in|into|to|as|at|of|with|from) (?:the|your|this|its|an?|every|any) (?:\w{{1,20}} )?(?:summary|summari[sz]ation|reply)\b",
    ),
    (
        "summa",
        rf"{_SUMMARY}[^\n:]{{0,50}}\b(?:must|should|shall|(?:has|have|needs?|is|are) (?:to|required to) (?:say|be|mention|include|contain|state|tell|claim|end|begin|start)|reads?|say|be exactly)\b",
    ),
    (
        "summa",
        rf"\b(?:in|into) (?:the|your|every|any|each) {_SUMMARY}.{{0,20}}{_SPEAK}|\byour {_SUMMARY}|\binstead of (?:a|the|any) {_SUMMARY}",
    ),
    ("summa", rf"\b(?:write|make|create|produce|part of) (?:the|your|every|any|each) {_SUMMARY}"),
    ("you", r"\b(?:rules|instructions?|prompts?|orders) (?:that )?you (?:were|have been|are|have) (?:given|told)\b"),
    ("simul", rf"{_START}simulate (?:an? |being )"),
    (
        "ignor previ allin syste",
        r"ignore(?:all|previous|the)|(?:previous|all)instructions|systemprompt",
    ),
    (
        _VERBS,
        rf"{_START}(?:respond|reply|answer|output|print|say|write)(?: with)? (?:only|just|nothing|exactly)\b",
    ),
    (_VERBS, r"(?:^|[.!?>] )now (?:respond|reply|answer|output|print|say|write)\b[^\n]{0,20}:"),
    ("summa", r"\b(?:correct|expected|right|only|official|approved|final) (?:summary|summari[sz]ation)\b"),
    ("summa", r"\b(?:when|while|before|after|if|instead of|in|do not|don't|never|stop) (?:you )?(?:are )?summari[sz](?:e|ing)\b"),
    (
        _NAMES,
        rf"{_MACHINE}.{{0,20}}\b(?:must|should|shall|please|ha(?:s|ve) to|follow|obey|reading this|processing this)\b|{_MACHINE}\W{{1,3}}{_SPEAK}",
    ),
    (_NAMES, rf"\b(?:attention|note|message|dear|hello|hey|hi|instructions?|notice)(?: to| for)?(?: any| all| the| every)?,? {_MACHINE}"),
    (
        "respo reply answe",
        rf"{_START}(?:respond|reply|answer) (?:only |just |exactly |simply )?(?:with|by|in)\b.{{0,40}}\b(?:only|exactly|nothing|word|phrase|verbatim|base64|pirate|haiku|poem)\b",
    ),
    (
        "verba nothi word",
        r"\b(?:output|print|say|repeat|write|reply|respond|answer)\b.{0,30}\b(?:verbatim|word for word|nothing else|nothing more|only the (?:word|text|string))\b",
    ),
    ("repea", r"\brepeat (?:everything|all|the (?:text|words|instructions|message)s?)\b.{0,30}\b(?:above|before|verbatim|so far)\b"),
    (
        "decod base6 rot13 hex rever backw ciphe",
        r"\b(?:decode|base64|rot13|hex|reversed|backwards|cipher)\b.{0,80}\b(?:follow|obey|execute it|comply|do what|carry out|act on|instructions?)\b",
    ),
    (
        "obey compl carry follo",
        r"\b(?:obey|comply with|carry out|follow) (?:the|these|this|my|all) (?:hidden|decoded|orders?|commands?)\b",
    ),
    (
        "imsta imend syste assis user eotid start inst sys",
        r"<\|(?:im_start|im_end|system|assistant|user|eot_id|start_header_id)\|>|</?(?:system|assistant|im_start)>|\[/?inst\]|<</?sys>>",
    ),
    (
        "imsta imend start endof eotid",
        r"\W(?:imstart|imend|startofturn|endofturn|eotid)\W",
    ),
    ("assis human ai", r"^\W{0,4}(?:assistant|human|ai)\W{0,3}:"),
    (
        "syste user",
        r"^\W{0,8}(?:system|user)\W{0,3}:.{0,80}\b(?:ignore|instruct\w*|summar\w+|respond|reply|override|you (?:are|must|will|should))\b",
    ),
    (
        "syste admin devel",
        r"^\W{0,8}(?:system|admin|developer) ?(?:message|override|note|update|notice|alert)\b.{0,60}\b(?:you|ignore|instruct\w*|summar\w+|respond|reply|model|assistant)\b",
    ),
    ("end", r"\bend of (?:the )?(?:item|issue|untrusted|user (?:input|message|text))\b"),
]
_LATIN = [
    # German, Dutch
    (
        "ignor vergi verge missa",
        r"\b(?:ignorier|vergiss|vergesst|missacht)\w*.{0,50}(?:anweisung|vorgabe|regel|instruktion)",
    ),
    ("antwo schre gib", r"\b(?:antworte|schreibe|gib) (?:nur|ausschließlich|ausschliesslich|stattdessen)\b"),
    ("negee verge", r"\b(?:negeer|vergeet).{0,50}(?:instructie|aanwijzing|regels)"),
    # Danish, Norwegian, Swedish, Finnish
    ("ignor borts glöm glem", r"\b(?:ignorera?|bortse|glöm|glem)\b.{0,50}(?:instruktion|instruks|regler|anvisning)"),
    ("unohd sivuu ohita", r"\b(?:unohda|sivuuta|ohita)\b.{0,50}ohje"),
    # French
    (
        "ignor oubli tien tene",
        r"\b(?:ignore[zr]?|oublie[zr]?|ne tiens|ne tenez).{0,50}(?:instructions?|consignes?|règles)\b",
    ),
    ("répon écris écriv", r"\b(?:réponds|répondez|écris|écrivez) (?:uniquement|seulement|exactement)"),
    # Spanish, Portuguese, Italian
    (
        "ignor olvid esque desca desco dimen omit",
        r"\b(?:ignor[ae]|olvid[ae]|esque[cç]|descart|desconsider|dimentica|omit[ae])\w*.{0,50}"
        r"(?:instruccion|instruç|indicacion|reglas|regras|istruzion|regole|órdenes|ordens)",
    ),
    (
        "respo escri escre rispo scriv",
        r"\b(?:responde|escribe|responda|escreva|rispondi|scrivi) (?:solo|sólo|solamente|únicamente|apenas|somente|soltanto|unicamente)\b",
    ),
    # Hungarian, Czech, Romanian
    ("figye felej", r"(?:figyelmen kívül|felejts).{0,50}(?:utasít|szabály)"),
    ("ignor zapom", r"\b(?:ignoruj|zapomeň).{0,50}(?:pokyn|instrukc|příkaz)"),
    ("ignor uită", r"\b(?:ignoră|uită).{0,50}instruc"),
    # Swahili
    ("puuza sahau", r"\b(?:puuza|sahau)\b.{0,50}(?:maagizo|maelekezo)"),
    # Polish, Turkish, Indonesian, Vietnamese
    ("zigno zapom pomiń", r"\b(?:zignoruj|zapomnij|pomiń).{0,50}(?:instrukcj|polece|zasad)"),
    ("talim komut", r"(?:talimat|komut)\w*.{0,40}(?:yok say|unut|görmezden|dikkate alma)"),
    ("abaik", r"\babaikan.{0,50}(?:instruksi|perintah)"),
    ("bỏ", r"bỏ qua.{0,40}(?:hướng dẫn|chỉ thị|lệnh)"),
]
# tried where there are letters of another script
_SCRIPTS = [
    # Greek, Thai
    r"(?:αγνόησ|ξέχασ).{0,60}(?:οδηγί|εντολ)",
    r"(?:เพิกเฉย|ละเว้น|ลืม).{0,60}คำสั่ง",
    # Russian, Ukrainian
    r"(?:игнорир|ігнору|забуд|забут)\w*.{0,60}(?:инструкци|указани|правил|команд|інструкці|вказів)",
    r"(?:ответь|напиши|выведи) (?:только|лишь)",
    # Chinese, Japanese, Korean
    r"(?:忽略|无视|無視|忘记|忘記).{0,30}(?:指令|指示|提示|说明|規則|规则|要求|命令)",
    r"(?:只|仅|请|請)(?:输出|輸出|回复|回覆|回答)",
    r"(?:指示|命令|プロンプト|ルール|指令).{0,30}(?:無視|忘れ)",
    r"(?:지시|명령|프롬프트|지침|규칙).{0,30}(?:무시|잊)",
    # Arabic, Hebrew, Persian, Hindi
    r"(?:تجاهل|انس).{0,60}(?:تعليمات|أوامر|الأوامر|القواعد)",
    r"(?:התעלמ|התעלם|שכח).{0,60}הוראות",
    r"دستور.{0,60}(?:نادیده|فراموش)",
    r"(?:निर्देश|आदेश).{0,60}(?:अनदेखा|नज़रअंदाज़|नजरअंदाज|भूल|ध्यान न)",
]
_FLAGS = re.DOTALL | re.MULTILINE
_PATTERNS = [(frozenset(heads.split()), re.compile(pattern, _FLAGS)) for heads, pattern in _ENGLISH + _LATIN]
_HEADS = frozenset[str]().union(*(heads for heads, _ in _PATTERNS))
_SCRIPT_PATTERNS = [re.compile(pattern, _FLAGS) for pattern in _SCRIPTS]
