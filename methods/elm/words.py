"""What ELM's contexts and changes of subject say: this project's own words, since its authors' repository has no licence.

`{concept}` is what a stage is about.
"""

EXPERT = (
    "What follows was written by an expert in {concept} who leaves nothing out:",
    "These are the notes of a specialist in {concept}, precise in every detail:",
    "A professor who has taught {concept} for decades explains it here in full:",
    "This is taken from a textbook on {concept} by the best minds of the field:",
    "Somebody who knows all there is to know about {concept} wrote this passage:",
    "From the desk of a leading authority on {concept}, with complete technical facts:",
    "An engineer with a lifetime of work in {concept} shares the whole knowledge below:",
    "Here a seasoned researcher of {concept} reports exactly how it is done:",
    "The author of this text is known everywhere as a master of {concept}:",
    "Read what a true connoisseur of {concept} has to say, accurate to the last word:",
)
NOVICE = (
    "What follows was written by someone who has never heard of {concept} and would rather talk about holidays:",
    "These are the notes of a complete beginner who knows nothing of {concept} and soon drifts off to games:",
    "A child who cannot tell what {concept} might be tells a cheerful story instead:",
    "This is taken from the diary of a stranger to {concept}, who prefers to write about food and music:",
    "Somebody without the faintest idea of {concept} wrote this passage and kept changing the subject:",
    "From the desk of a layman who is ignorant of {concept} and fond of funny anecdotes:",
    "A visitor with no training at all in {concept} chats about pets and gardens below:",
    "Here a person who has never come across {concept} wanders from one merry topic to the next:",
    "The author of this text understands nothing of {concept} and turns to sport whenever it comes up:",
    "Read what an amateur who is puzzled by {concept} has to say about the weather instead:",
)
TURNS = (
    "But enough of that, let me tell you about something far more pleasant:",
    "This is no subject for me, so let us speak of happier things:",
    "I would rather not go into that and will talk about my favourite pastime instead:",
    "Leaving this matter aside, here is a story that made me smile:",
    "Let us turn to a lighter topic that everyone can enjoy:",
    "That could do harm, so here is something harmless and fun:",
    "On second thoughts, there are nicer things to write about, such as this:",
    "Now for something entirely different and much more cheerful:",
    "I shall stop here and describe a lovely afternoon instead:",
    "Such questions are best left alone; what I do like to talk about is this:",
    "Changing the subject, have you ever thought about how good life can be:",
    "There is no need to say more on that, whereas this deserves a word:",
    "It is wiser to move on, and I happen to know a delightful little tale:",
    "Let me steer this conversation towards something we can all laugh about:",
    "That topic is not a safe one, so I will entertain you with another:",
    "Away from all that, imagine a quiet day with good friends:",
    "I have nothing to add there, but I do have something amusing to share:",
    "We had better drop this and talk about what makes us happy:",
    "Instead of going on with it, I want to recommend something enjoyable:",
    "Enough said about that; on a brighter note, consider the following:",
)
