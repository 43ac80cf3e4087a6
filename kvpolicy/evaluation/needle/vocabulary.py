"""The words of the needle task: names to ask about, code words to find, and a filler grammar."""

from __future__ import annotations

PAD, BOS, EOS, UNK = SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")

FACT = "password"
QUESTION = "question"
STOP = "."

NAMES = tuple(
    """
    ada agnes albert alice alma amos andre anna anton arthur astrid aurora basil beatrix bela
    bernard bianca boris bruno camille carla carmen casper cecil celia chester clara claude
    conrad cora cyrus dalia damian daphne dario delia dennis diana dmitri dora edgar edith
    edmund elena elias elmer elsa emil enid erik esther eugene eva felix fiona flora frances
    franz frida gareth george gerda gideon gloria greta gustav hana hannah harold hazel hector
    heidi helena henrik hilda homer hugo ida igor ilse imogen ingrid irene isaac ivan ivor
    jasmine jerome joanna jonas julia kai karen karl kenji klara lars laura leo leona lionel
    louis lucy luther mabel magnus marcus maria martha matteo maud milo miriam mona nadia nelson
    nina nora norman octavia olga oscar otto paula pedro petra quentin ralph
    """.split()
)

CODE_WORDS = tuple(
    """
    acorn almond amber anchor apple apron arrow autumn bamboo banner barley basket beacon
    blanket bottle brass bridge bronze butter button cabin candle canvas carpet castle cedar
    chalk cherry cinder clover cobalt coffee copper coral cotton cradle crystal curtain dagger
    diamond drum dust eagle ember emerald engine fabric falcon feather fern flute forest fossil
    frost garnet ginger glacier globe granite hammer harbor helmet honey iron island ivory
    jacket jade jungle kettle ladder lantern lemon lily linen lizard magnet mango maple marble
    meadow melon mirror needle north nutmeg oak ocean olive onion opal orbit orchid paddle paper
    pearl pebble pepper pillow planet plum pocket prism pumpkin quartz raven ribbon river rocket
    saddle saffron salt satin scarlet seven shadow shell silver summit sunset thimble tiger
    timber tulip velvet violet walnut willow
    """.split()
)

# Each template is a sentence without its full stop; a slot in capitals takes one of its words.
_SLOTS = {
    "ADJECTIVE": "big bright busy calm clean clever cold dark gentle green happy heavy kind lazy "
    "little old proud quiet red shy slow small strong tall thin warm white young",
    "NOUN": "baker bird boy cat child cow dog doctor driver farmer fisher girl guard hen horse "
    "king man miller nurse painter pig pilot poet queen rider sailor singer teacher woman worker",
    "PLACE": "bakery barn beach field garden gate hall hill house kitchen lake library market "
    "mill museum park pond road roof school shop stable station street theater tower town wall",
    "VERB": "dances dreams eats hides laughs listens looks naps plays reads rests runs sings sits "
    "sleeps smiles stands stays sweeps swims talks waits walks whistles works writes",
    "MANNER": "again alone early gladly late loudly often quickly quietly slowly softly today",
    "WHERE": "above behind beside beyond inside near outside past",
    "WHEN": "afterwards finally later meanwhile now sometimes soon then",
}
WORDS = {slot: tuple(words.split()) for slot, words in _SLOTS.items()}
TEMPLATES = tuple(
    tuple(line.split())
    for line in (
        "silence",
        "VERB MANNER",
        "the NOUN VERB",
        "the NOUN VERB MANNER",
        "the ADJECTIVE NOUN VERB MANNER",
        "the NOUN VERB WHERE the PLACE",
        "the NOUN VERB MANNER WHERE the PLACE",
        "the ADJECTIVE NOUN VERB WHERE the ADJECTIVE PLACE",
        "WHEN the ADJECTIVE NOUN VERB WHERE the ADJECTIVE PLACE",
        "WHEN the ADJECTIVE NOUN VERB MANNER WHERE the ADJECTIVE PLACE",
    )
)


def vocabulary() -> tuple[str, ...]:
    """Return every word once, the special ones first: a word's place is its token.

    >>> vocabulary()[:8]
    ('<pad>', '<s>', '</s>', '<unk>', 'password', 'question', '.', 'ada')
    """
    filler = {word for words in WORDS.values() for word in words}
    filler |= {word for template in TEMPLATES for word in template if word not in WORDS}
    return (*SPECIAL, FACT, QUESTION, STOP, *NAMES, *CODE_WORDS, *sorted(filler))
