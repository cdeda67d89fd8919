"""English pronouns the other way round: her is him or his, his is her or hers, by the words around."""

from __future__ import annotations

from inhouse.data.augment import Word, listed

# After an object (told her that …): what cannot begin the thing that somebody has.
AFTER_OBJECT = listed(
    "a abroad about above after again ago aside alone along although always among an and any anymore anyone"
    " anything anyway are as at away back be because been before behind being below beside between both but by can"
    " could did do does down during each either else enough ever every everything for forever forward from goodbye"
    " had has have he her here herself hers him himself his home how i if in inside instead into is it its just"
    " later like may me might mine more much must my near neither never no nor not nothing now of off on once onto"
    " or our out outside over please quite rather she should since so some someone something soon still than that"
    " the their them then there these they this those though through to today together tomorrow tonight too toward"
    " towards twice under unless until up us very was we well were what whatever when whenever where whether which"
    " while who whom whose why will with within without would yesterday yet you your"
)
# The same after what is his, which adverbs and adjectives may still describe (his once happy home).
AFTER_HIS = AFTER_OBJECT - listed(
    "very once home much well more always ever inside outside back still just later everything near then now"
    " through above below rather quite never not something anything soon better else again"
)
# Verbs after which `her` can be an object before a bare verb or an adjective: saw her leave, made her happy.
CAUSES = listed(
    "let lets letting make makes made making help helps helped helping see sees saw seen seeing watch watched"
    " watching hear heard hearing feel felt notice noticed keep keeps kept keeping find finds found finding leave"
    " left leaving consider considered call calls called calling drive drive drives driving drove get got getting"
    " have had want wanted"
)
# Verbs that take a person and a thing: gave her money.
GIVES = listed(
    "give gives gave given giving tell tells told telling show shows showed shown showing bring brings brought"
    " bringing buy buys bought buying send sends sent sending offer offers offered offering teach teaches taught"
    " teaching hand handed ask asks asked asking owe owes owed pay pays paid paying lend lent promise promised"
    " cost costs wish wished earn earned save saved spare spared deny denied allow allowed elect elected name"
    " named appoint appointed grant granted serve served pass passed"
)
# People of hers, who are not what is given: told her friends.
HERS = listed(
    "own mother father mom dad parents sister brother sisters brothers son daughter sons daughters husband wife"
    " aunt uncle family friend friends colleague colleagues boss manager team teacher teachers neighbor neighbors"
    " neighbour neighbours boyfriend girlfriend children kids child baby grandmother grandfather grandma grandpa"
    " partner cousin doctor lawyer assistant employees staff students patients customers clients"
)
NO_ADVERB = listed(
    "family early lovely friendly elderly daily weekly monthly lonely ugly only likely silly curly belly lively"
    " deadly costly holy reply lovely worldly motherly fatherly bodily anomaly assembly july jelly bully ally"
)
BARE = listed(
    "go be know do take leave come see get say stop stay feel become understand realize believe think talk speak"
    " sing dance walk run cry laugh smile sleep eat drink start finish begin enter open close write read study"
    " learn grow happy sad crazy mad angry nervous proud tired sick busy safe calm comfortable uncomfortable"
    " famous rich popular unhappy interesting attractive responsible awake company waiting working talking crying"
    " sleeping laughing"
)


# Where the next word alone does not tell: in her home, take her home; on her back, call her back.
PLACES = listed("home back inside outside past right")
BEFORE_A_PLACE = listed("to in at from of on near around into behind through by for with under over against")
ADVERBS = listed("then now once still much very late more most less well")
SPANS = listed(
    "second seconds minute minutes hour hours day days week weeks weekend month months year years decade decades"
    " night time times evening morning summer winter spring monday tuesday wednesday thursday friday saturday"
    " sunday"
)
DAYS = listed("monday tuesday wednesday thursday friday saturday sunday better first")
COUNTS = listed("last next two three four five six seven eight nine ten several many few")
OF_SOMEBODY = listed("my your his her its our their")
VERBS_BACK = listed(
    "call calls called bring brings brought take takes took taken get gets got want wants send sent pay paid"
)


def of_her(word: Word) -> str | None:
    """him or his for `her`; None when only the meaning could tell."""
    before, after, beyond = ((near or "").lower() for near in (word.before, word.after, word.beyond))
    if (sure := _by_two_words(before, after, beyond)) is not None:
        return sure or None
    if not after or after in AFTER_OBJECT:
        return "him"
    if after in HERS:
        return "his"
    if before in CAUSES and after in BARE:
        return "him"
    if before in CAUSES or before in GIVES:
        return None
    if after.endswith("ly") and after not in NO_ADVERB:  # trust her completely; her completely new car
        return "him" if not word.beyond else None
    return "his"


def _by_two_words(before: str, after: str, beyond: str) -> str | None:
    """him or his where a second word tells, "" where even that does not; None where it is not needed."""
    if after in ("and", "or") and beyond in OF_SOMEBODY:
        return "his" if after == "or" else ""  # her or his bag; saw her and his mother
    if after in ADVERBS and beyond in HERS:
        return "his"  # her then husband
    if beyond in SPANS and (after in COUNTS or after.isdigit()):
        return "him"  # met her last week, two days ago
    if after in DAYS:
        return "" if beyond else "him"
    if after not in PLACES:
        return None
    if before in BEFORE_A_PLACE:
        return "his"
    return "him" if before in VERBS_BACK else ""


def of_his(word: Word) -> str:
    """her before the thing that he has, else hers."""
    after, beyond = (word.after or "").lower(), (word.beyond or "").lower()
    if after in ("and", "or") and beyond in OF_SOMEBODY:
        return "her"
    return "hers" if not after or after in AFTER_HIS else "her"
