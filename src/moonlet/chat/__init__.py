"""Everything between a conversation and token ids, in both directions; no model and no torch here.

messages   OpenAI-shaped dicts -> frozen messages
repair     histories with foreign ids, lost reasoning, empty parts -> as the model knows them
tokenizer  text <-> ids; user text never becomes a special id
template   messages -> prompt ids, native (tools_typescript declares the tools)
jinja      the same by a checkpoint's own template, run in `sandbox` (meter keeps its budget)
media      pictures and frames -> patches
attachments  the media of a conversation: read from their sources (data URLs, files, fetch), measured, decoded
images     bytes -> pictures (formats says of which kind they are, headers reads sizes)
video      bytes -> frames, decoded by video_child in a process of its own
parser     generated ids -> events (`held` keeps text back, `calls` reads the tool calls)
provider   the protocol that servers, agents and engines share; `fake` scripts it for tests
"""
