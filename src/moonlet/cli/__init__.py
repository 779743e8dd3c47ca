"""The `moonlet` command: one file per subcommand, and the only unit that knows all the others.

Nothing heavy is imported before a command needs it: `moonlet --help` and `moonlet inspect`, of what is
on this machine, start without torch.
"""
