"""What the search of the built site finds: its index, read as its script reads it."""

import json


class SearchIndex:
    """Terms -> pages of a site in a folder; all terms of a query have to be on a page, as words or as parts of words."""

    def __init__(self, site):
        from sphinx.search.en import SearchEnglish

        text = (site / "searchindex.js").read_text()
        index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
        self.language, self.pages = SearchEnglish({}), index["docnames"]
        self.terms = [index["terms"], index["titleterms"]]

    def words(self, text):
        """The terms that a query is taken apart into; short ones, numbers and the language's commonest do not count."""
        words = [word.lower() for word in self.language.split(text)]
        kept = [
            w for w in words if len(w) > 2 and not w.isdigit() and w not in self.language.stopwords
        ]
        return {self.language.stem(word) for word in kept}

    def has(self, term, page):
        """Whether a page has a term, or a longer one that it is part of."""
        number = self.pages.index(page)
        for terms in self.terms:
            for known in [term] if term in terms else [t for t in terms if term in t]:
                found = terms[known]
                if number in (found if isinstance(found, list) else [found]):
                    return True
        return False
