"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """A mistake of the user, or of the machine around us, that no change of this code would mend.

    The message is one line: what was wrong, where (the file, the flag), and what to do. The command line prints it as
    `llmpy: error: <message>` on stderr and exits with status 1; a traceback is for our own mistakes.
    """
