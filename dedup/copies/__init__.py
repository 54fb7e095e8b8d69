"""Finding edited copies: a learned descriptor proposes, local features verify on the pixels."""
