"""Wire shapes, and nothing else: bytes to a request, events to bytes. Pure: no clock, no socket, no log.

Import the module of the API you mean: `openai_chat` reads a request, `openai_chat_answer` writes its answer.
"""
