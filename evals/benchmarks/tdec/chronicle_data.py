"""The words and sentences of the embedded chronicle: all that its texts are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

POOLS: Mapping[str, Sequence[str]] = {
    name: tuple(words.split())
    for name, words in {
        "person": (
            "Adwin Belka Corvo Dunja Edric Fenna Garlo Hesta Ilmar Joven Kessa Lorin Marek Nilda Orsel Pavla Quint Risha "
            "Selmo Tavia Ulric Vesna Wilmo Xanda Yorin Zelda Anshel Brida Cosmo Delva Elgar Frosta Gundo Hilke Ivo Jutta"
        ),
        "place": (
            "Ashmoor Brindle Calvern Dunmere Eskdale Farrow Glimmock Hartsend Inverlow Kelby Larkham Mossgate Norwell "
            "Oakridge Penhallow Quarrow Ravensby Stonely Thornwick Upwater Velmont Westray Yarrowby Zandring"
        ),
        "number": (
            "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
            "nineteen twenty thirty forty fifty sixty seventy eighty ninety"
        ),
        "goods": (
            "barrels blankets bells boots bricks candles carpets chairs clocks coats combs drums fiddles gloves hats jars "
            "kettles knives lamps ladders mirrors nets ovens pans pipes ropes saddles shovels spoons tables umbrellas wheels"
        ),
        "quality": (
            "amber black bright broken cheap clean crooked dusty early empty famous foreign gentle golden green heavy hollow "
            "iron lonely narrow noisy old painted pale proud quiet red round silver small strange tall wooden yellow"
        ),
        "animal": (
            "badger bear crane crow deer dog donkey eagle fox frog goat goose hare hawk hen horse lynx magpie mole otter owl "
            "ox pig raven seal sheep snail squirrel stork swan toad wolf"
        ),
        "deed": (
            "borrowed bought buried built burned carried cleaned counted dropped exchanged found gathered hid kept lent lost "
            "mended moved opened packed painted sent stole threw traded washed weighed wrapped"
        ),
        "weather": "clear cloudy cold dry foggy frosty hot humid misty rainy snowy stormy sunny warm wet windy",
        "month": "Arvel Brume Cirrin Dovar Elber Feris Gannet Holm Irrin Jorvel Kaldor Lumen",
        "trade": (
            "baker barber brewer carpenter clerk cobbler cook cooper diver farmer fisher guard hunter judge mason miller "
            "miner nurse painter pilot potter sailor shepherd singer smith tailor teacher weaver"
        ),
    }.items()
}
"""What stands for a word in braces; all of a pool are equally likely."""
SENTENCES: Sequence[str] = (
    "{person} {deed} {number} {quality} {goods} in {place} .",
    "{weather} {month} , {place} , {trade} {person} {deed} {goods} .",
    "{quality} {animal} , {quality} {animal} , {deed} by {person} .",
    "{person} the {trade} {deed} {goods} , {number} {quality} .",
    "{trade} of {place} {deed} {animal} and {animal} .",
    "{number} {goods} to {place} , {number} to {place} .",
    "{person} , {person} , {person} left {place} , {weather} .",
    "{quality} {goods} {deed} , {quality} {trade} {deed} {animal} .",
)
"""What a text is made of; all are equally likely."""
FORMULA = "All this was read aloud before the council and written down as it was told ."
"""What ends a paragraph: words that texts share, as they share licences and legal notices in a real corpus."""
SENTENCES_OF_PARAGRAPH = 24
"""How many stand before the formula, on the average."""
