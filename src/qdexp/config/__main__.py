"""``python -m qdexp.config``: the whole configuration as a JSON schema, for editors and documentation."""

import json

from qdexp.arguments import Parser
from qdexp.config import Config
from qdexp.config.checks import schema_of
from qdexp.errors import one_line

if __name__ == "__main__":
    Parser("python -m qdexp.config", __doc__).parse_args()
    with one_line():
        print(json.dumps(schema_of(Config), indent=1))
