"""Questions that nano cannot answer, and the honest reply to them.

Built from frames and fillers, so that the number of different questions is large while the lists stay
readable. Some fillers are made-up words, so that the reply does not hang on a known vocabulary; some
fillers of the test are never used in training.
"""

import random

ANSWER = {
    "en": "I am too small for that. I add and subtract two numbers up to three digits, read handwritten digits and say who I am.",
    "pt": "Sou pequeno demais para isso. Somo e subtraio dois números até três dígitos, leio dígitos escritos à mão e digo quem sou.",
}
THOUGHT = "Not something I can do."

FRAMES = {
    "en": """what is the capital of {place}|where is {place}|tell me about {thing}|what is {thing}|what are {thing}|explain {thing}|explain {thing} to me|who is {person}|who was {person}
when was {person} born|write a poem about {thing}|write a story about {thing}|write a song about {thing}|tell me a joke about {thing}|tell me a joke|what is the weather in {place}
how far is {place}|how do i get to {place}|write code for {thing}|write a python function about {thing}|translate {thing}|what does {thing} mean|how do i make {thing}|how do you make {thing}
what time is it|what day is it today|what year is it|do you like {thing}|what is your favorite {thing}|recommend {thing}|where can i buy {thing}|how much does {thing} cost|why is {thing} important
who invented {thing}|who won the game|what is the meaning of life|summarize {thing}|what is the best {thing}|is {thing} good|how old is {person}|what do you think about {thing}
i like {thing}|i am {mood}|my name is {person}|what is my name|sing me a song|tell me a story|draw {thing}|give me a recipe for {thing}|which is better {thing} or {thing}|are there {thing} in {place}
can you write about {thing}|can you drive|who is the president of {place}|how many people live in {place}|what is the population of {place}|what happened in {place}|search for {thing}|help me with {thing}|why
what is {n} times {n}|{n} * {n}|{n} x {n}|{n} / {n}|what is {n} divided by {n}|{n} times {n}|divide {n} by {n}|multiply {n} by {n}|{big} + {n}|{n} + {big}|{big} - {n}|{big} + {big}|what is {big} + {n}
what is {big} plus {big}|what is {big} - {big}|{n} + {n} + {n}|what is {n} + {n} + {n}|{n} - {n} - {n}|{n} + {n} - {n}|the square root of {n}|square root of {n}|is {n} prime|is {n} even|what is {n} squared|{n}^2|{n}% of {n}
count to {n}|{n}|what comes after {n}|solve x + {n} = {n}|{junk}|{junk} {junk}|{junk} {junk} {junk}|what is {junk}|who is {junk}|tell me about {junk}|write {junk}|how do i {junk}|where is {junk}|can you {junk} {junk}""",
    "pt": """qual é a capital de {place}|onde fica {place}|fala-me de {thing}|fale sobre {thing}|o que é {thing}|o que são {thing}|explica {thing}|explique {thing}|quem é {person}|quem foi {person}
quando nasceu {person}|escreve um poema sobre {thing}|escreva uma história sobre {thing}|conta uma piada sobre {thing}|conta uma piada|conte uma piada|como está o tempo em {place}
qual é a distância até {place}|como chego a {place}|escreve código para {thing}|escreva um programa sobre {thing}|traduz {thing}|traduza {thing}|o que significa {thing}|como se faz {thing}|como faço {thing}
que horas são|que dia é hoje|em que ano estamos|gostas de {thing}|você gosta de {thing}|recomenda {thing}|onde posso comprar {thing}|quanto custa {thing}|por que {thing} é importante
quem inventou {thing}|quem ganhou o jogo|qual é o sentido da vida|resume {thing}|qual é o melhor {thing}|quantos anos tem {person}|o que achas de {thing}|o que você acha de {thing}
gosto de {thing}|estou {mood}|o meu nome é {person}|qual é o meu nome|canta uma canção|conta uma história|desenha {thing}|dá-me uma receita de {thing}|há {thing} em {place}
podes escrever sobre {thing}|quem é o presidente de {place}|quantas pessoas vivem em {place}|qual é a população de {place}|o que aconteceu em {place}|procura {thing}|ajuda-me com {thing}|porquê
quanto é {n} vezes {n}|{n} vezes {n}|quanto é {n} a dividir por {n}|{n} dividido por {n}|divide {n} por {n}|multiplica {n} por {n}|quanto é {big} + {n}|quanto é {big} mais {big}|quanto é {big} - {big}
quanto é {n} + {n} + {n}|a raiz quadrada de {n}|raiz quadrada de {n}|{n} é primo|{n} é par|conta até {n}|o que vem depois de {n}|o que é {junk}|quem é {junk}|fala-me de {junk}|escreve {junk}|onde fica {junk}|como se faz {junk}""",
}  # fmt: skip

FILLERS = {
    "place": {
        "en": "france|spain|brazil|portugal|japan|china|london|paris|new york|lisbon|africa|canada|india|germany|italy|the moon|mars|tokyo|russia|mexico",
        "pt": "frança|espanha|brasil|portugal|japão|china|londres|paris|lisboa|porto|áfrica|canadá|angola|alemanha|itália|rio de janeiro|são paulo|marte|madrid",
    },
    "thing": {
        "en": "cats|dogs|love|the sea|a cake|bread|football|music|history|quantum physics|the sun|rain|a car|books|movies|flowers|python|computers|water|coffee|the war|money|a house|gravity|birds|time|chess|fish|the internet|dinner",
        "pt": "gatos|cães|amor|o mar|um bolo|pão|futebol|música|história|física quântica|o sol|chuva|um carro|livros|filmes|flores|python|computadores|água|café|a guerra|dinheiro|uma casa|gravidade|pássaros|o tempo|xadrez|peixe|a internet|jantar",
    },
    "person": {
        "en": "einstein|newton|shakespeare|mozart|picasso|napoleon|john|maria|the king|obama|messi|ronaldo|darwin|anna|the queen|peter",
        "pt": "einstein|newton|camões|mozart|picasso|napoleão|joão|maria|o rei|pelé|messi|ronaldo|darwin|ana|a rainha|pedro",
    },
    "mood": {
        "en": "sad|happy|tired|bored|hungry|lost|angry|sick",
        "pt": "triste|feliz|cansado|com fome|perdido|zangado|doente|aborrecido",
    },
}  # fmt: skip
HELD_OUT_FILLERS = {
    "place": {"en": "sweden|egypt|chicago", "pt": "suécia|egito|coimbra"},
    "thing": {"en": "horses|a pizza|the stars", "pt": "cavalos|uma pizza|as estrelas"},
    "person": {"en": "galileo|cleopatra", "pt": "galileu|cleópatra"},
    "mood": {"en": "afraid", "pt": "com medo"},
}
SYLLABLES = "ba co di fe gu la me no pi ra su ta ve zo ch an er in or st th el ar is on re ti al ma que".split()


def question(language: str, test: bool, rng: random.Random) -> str:
    """A question beyond nano; the test's have words that training never shows."""
    text = rng.choice([f for line in FRAMES[language].split("\n") for f in line.split("|")])
    while "{" in text:
        kind = text[text.index("{") + 1 : text.index("}")]
        text = text.replace("{" + kind + "}", _fill(kind, language, test, rng), 1)
    return text


def _fill(kind: str, language: str, test: bool, rng: random.Random) -> str:
    if kind == "n":
        return str(rng.randrange(10 ** rng.randint(1, 3)))
    if kind == "big":
        digits = rng.randint(4, 6)
        return str(rng.randrange(10 ** (digits - 1), 10**digits))
    if kind == "junk" or rng.random() < 0.15:
        return "".join(rng.choices(SYLLABLES, k=rng.randint(2, 4)))
    source = HELD_OUT_FILLERS if test else FILLERS
    return rng.choice(source[kind][language].split("|"))
