//! A Rust file as the rules see it: words without comments and literals, and the paths that leave the file's module.
//!
//! Not a parser: it knows comments, literals, `::`, braces and `mod`, which is all that paths need.

/// One file.
pub(crate) struct Source {
    /// Path below the source folder, with `/`.
    pub(crate) name: String,
    /// As read.
    pub(crate) text: String,
    /// Its words.
    pub(crate) tokens: Vec<Token>,
}

/// A word or a sign.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    /// Counted from 1.
    pub(crate) line: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Word(String),
    /// `::`
    Sep,
    Sign(char),
}

/// A path from the crate's root.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reach {
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
}

impl Source {
    pub(crate) fn new(name: &str, text: &str) -> Source {
        Source { name: name.to_owned(), text: text.to_owned(), tokens: tokens(text) }
    }

    /// The module that the file is: `view/read.rs` is `view::read`, `lib.rs` the root.
    pub(crate) fn module(&self) -> Vec<String> {
        let stem = self.name.trim_end_matches(".rs");
        let mut path: Vec<String> = stem.split('/').map(str::to_owned).collect();
        if matches!(path.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            path.pop();
        }
        path
    }

    /// All paths that start with `crate::` or climb by `super::`, resolved from the root; groups opened.
    pub(crate) fn reaches(&self) -> Vec<Reach> {
        let mut reaches = Vec::new();
        let mut module = self.module();
        // For each open brace whether it is that of an inline module.
        let mut braces = Vec::new();
        let mut at = 0;
        while let Some(token) = self.tokens.get(at) {
            match &token.kind {
                Kind::Word(word) if word == "mod" => {
                    if let (Some(name), Some(Kind::Sign('{'))) = (self.word(at + 1), self.kind(at + 2)) {
                        module.push(name.to_owned());
                        braces.push(true);
                        at += 2;
                    }
                }
                Kind::Sign('{') => braces.push(false),
                Kind::Sign('}') => {
                    let closed = braces.pop();
                    if closed == Some(true) {
                        module.pop();
                    }
                }
                Kind::Word(word) if word == "crate" && self.kind(at + 1) == Some(&Kind::Sep) => {
                    at = self.tree(at + 2, &[], &mut reaches);
                    continue;
                }
                Kind::Word(word) if word == "super" => {
                    let mut base = module.clone();
                    while self.word(at) == Some("super") && self.kind(at + 1) == Some(&Kind::Sep) {
                        base.pop();
                        at += 2;
                    }
                    at = self.tree(at, &base, &mut reaches).max(at + 1);
                    continue;
                }
                _ => {}
            }
            at += 1;
        }
        reaches
    }

    /// Reads the rest of a path or use tree at `at`, which hangs below `base`; returns where it ends.
    fn tree(&self, mut at: usize, base: &[String], out: &mut Vec<Reach>) -> usize {
        let mut path = base.to_vec();
        let line = self.tokens.get(at).map_or(0, |token| token.line);
        loop {
            match self.kind(at) {
                Some(Kind::Sign('{')) => {
                    at += 1;
                    while let Some(kind) = self.kind(at) {
                        match kind {
                            Kind::Sign('}') => return at + 1,
                            Kind::Sign(',') => at += 1,
                            _ => at = self.tree(at, &path, out).max(at + 1),
                        }
                    }
                    return at;
                }
                Some(Kind::Word(word)) => {
                    if word == "super" {
                        path.pop();
                    } else if word != "self" {
                        path.push(word.clone());
                    }
                    at += 1;
                }
                // A glob reaches the path before it.
                _ => break,
            }
            if self.kind(at) != Some(&Kind::Sep) {
                break;
            }
            at += 1;
        }
        out.push(Reach { path, line });
        if self.word(at) == Some("as") {
            at += 2;
        }
        if self.kind(at) == Some(&Kind::Sign('*')) {
            at += 1;
        }
        at
    }

    /// The names that the file declares by `mod`.
    pub(crate) fn modules(&self) -> Vec<(String, usize)> {
        let declared = |at: usize, token: &Token| {
            (token.kind == Kind::Word("mod".into()))
                .then(|| Some((self.word(at + 1)?.to_owned(), token.line)))
                .flatten()
        };
        self.tokens.iter().enumerate().filter_map(|(at, token)| declared(at, token)).collect()
    }

    /// What the root re-exports: the paths of its `use` lines.
    pub(crate) fn uses(&self) -> Vec<Reach> {
        let mut out = Vec::new();
        for (at, token) in self.tokens.iter().enumerate() {
            if token.kind == Kind::Word("use".into()) {
                self.tree(at + 1, &[], &mut out);
            }
        }
        out
    }

    /// Where the file names the outside crate `name`: `name::…` or `use name`, but not `other::name`.
    pub(crate) fn uses_crate(&self, name: &str) -> Vec<usize> {
        let mut lines = Vec::new();
        for (at, token) in self.tokens.iter().enumerate() {
            if token.kind != Kind::Word(name.into()) {
                continue;
            }
            let before = at.checked_sub(1).and_then(|at| self.kind(at));
            let further = at.checked_sub(2).and_then(|at| self.kind(at));
            let used = matches!(before, Some(Kind::Word(word)) if word == "use" || word == "crate");
            let below =
                before == Some(&Kind::Sep) && matches!(further, Some(Kind::Word(word)) if word != "use");
            if !below && (used || self.kind(at + 1) == Some(&Kind::Sep)) {
                lines.push(token.line);
            }
        }
        lines.dedup();
        lines
    }

    fn kind(&self, at: usize) -> Option<&Kind> {
        self.tokens.get(at).map(|token| &token.kind)
    }

    fn word(&self, at: usize) -> Option<&str> {
        match self.kind(at) {
            Some(Kind::Word(word)) => Some(word),
            _ => None,
        }
    }
}

/// The words and signs of `text`; comments and literals left out.
fn tokens(text: &str) -> Vec<Token> {
    let mut rest = text;
    let mut line = 1;
    let mut tokens = Vec::new();
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = literal(rest) {
            length
        } else if first.is_alphabetic() || first == '_' {
            let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push(Token { kind: Kind::Word(rest[..length].to_owned()), line });
            length
        } else if rest.starts_with("::") {
            tokens.push(Token { kind: Kind::Sep, line });
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(Token { kind: Kind::Sign(first), line });
            }
            first.len_utf8()
        };
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

/// Block comments nest.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of the string, character, raw identifier's prefix or lifetime at the start of `text`, if there is one.
fn literal(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r", "b", "c", ""].into_iter().find(|prefix| {
        let rest = text.strip_prefix(prefix);
        rest.is_some_and(|rest| {
            rest.starts_with('"')
                || (prefix.ends_with('r') && rest.trim_start_matches('#').starts_with('"'))
                || (matches!(*prefix, "b" | "") && rest.starts_with('\''))
        })
    });
    let Some(prefix) = prefix else {
        // `r#type` is the word `type`.
        return text.starts_with("r#").then_some(2);
    };
    let body = &text[prefix.len()..];
    if prefix.ends_with('r') {
        let hashes = body.find('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let start = hashes + 1;
        let length = body[start..].find(&end).map_or(body.len(), |at| start + at + end.len());
        return Some(prefix.len() + length);
    }
    let quote = body.chars().next()?;
    if quote == '\'' && prefix.is_empty() {
        // A lifetime has no closing quote after its first character.
        let mut chars = body.chars().skip(1);
        if chars.next()? != '\\' && chars.next() != Some('\'') {
            let name = body[1..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(body.len() - 1);
            return Some(1 + name);
        }
    }
    let mut escaped = false;
    for (at, c) in body.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some(prefix.len() + at + 1),
            _ => {}
        }
    }
    Some(text.len())
}
