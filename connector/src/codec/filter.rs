//! Which records a consumer holds: comparisons of their fields.
//!
//! ```text
//!  filter     = either { "or" either }                 field      = name { "." name }
//!  either     = unit { "and" unit }                    literal    = 'text' | "text" | 12 | -0.5 | 1e6 | true | false
//!  unit       = "not" unit | "(" filter ")" | comparison
//!  comparison = field ( = | != | < | <= | > | >= ) literal
//!             | field [ "not" ] "in" "(" literal { "," literal } ")"
//!             | field "is" [ "not" ] "null"
//! ```
//!
//! True or false, nothing between: any comparison with a field that is null is false, `!=` too (`is null` asks for that);
//! `not` makes true of it. Text and enums compare by their bytes, numbers by their value, exactly, however they are
//! stored. Words are lower or upper case; a quote within text is written twice.

use std::cmp::Ordering;
use std::fmt;

use super::part::Part;
use crate::schema::node::Nodes;
use crate::schema::{Id, Malformed, Node, Schema};
use crate::words::instead;

/// Deepest nesting of parentheses and `not`.
const MAX_NESTING: usize = 64;

/// A filter, parsed; it fits many schemas.
#[derive(Clone, PartialEq)]
pub struct Filter {
    text: String,
    expression: Expression,
}

#[derive(Clone, Debug, PartialEq)]
enum Expression {
    Any(Vec<Expression>),
    All(Vec<Expression>),
    Not(Box<Expression>),
    Compare(Path, Operator, Literal),
    In(Path, Vec<Literal>),
    Null(Path),
}

#[derive(Clone, Debug, PartialEq)]
struct Path(Vec<String>);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Debug, PartialEq)]
enum Literal {
    Text(String),
    Int(i64),
    Float(f64),
    Bool(bool),
}

/// Why a filter is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is not in the language.
    #[error("the filter cannot be read at {}: {what}", if rest.is_empty() { "its end".to_owned() } else { format!("`{rest}`") })]
    Syntax {
        /// What stands there.
        rest: String,
        /// What is expected.
        what: String,
    },
    /// It asks what the schema cannot answer.
    #[error("the filter does not fit the schema: {0}")]
    Schema(String),
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// [`Error::Syntax`] with the place and what is expected there.
    pub fn parse(text: &str) -> Result<Filter, Error> {
        let mut parser = Parser { rest: text, depth: 0 };
        let expression = parser.filter()?;
        match parser.peek()? {
            Token::End => Ok(Filter { text: text.to_owned(), expression }),
            _ => parser.expected("`and`, `or` or the end"),
        }
    }

    /// As it was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether datums of `schema` can be asked: each field is there, of a type that is compared with such a literal.
    ///
    /// # Errors
    /// [`Error::Schema`].
    pub fn check(&self, schema: &Schema) -> Result<(), Error> {
        self.expression.check(&schema.nodes).map_err(Error::Schema)
    }

    /// Whether a datum of `schema`, which was checked, is asked for. Decodes no more than the fields it compares.
    ///
    /// # Errors
    /// [`Malformed`] where the bytes are no datum of it.
    pub fn holds(&self, schema: &Schema, datum: &[u8]) -> Result<bool, Malformed> {
        self.expression.holds(&Part::whole(schema, datum)?)
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({})", self.text)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

impl Path {
    /// The nodes of all values that it can lead to, branches of unions each by itself; null where it can end early.
    fn nodes(&self, nodes: &Nodes) -> Result<Vec<Id>, String> {
        let mut here = branches(nodes, nodes.root);
        for name in &self.0 {
            let mut next = Vec::new();
            let mut found = false;
            let mut there = Vec::new();
            for id in here {
                match nodes.get(id) {
                    Node::Record(record) => {
                        there.extend(record.fields.iter().map(|field| &*field.name));
                        if let Some(field) =
                            record.field(name.as_bytes()).and_then(|at| record.fields.get(at))
                        {
                            next.extend(branches(nodes, field.node));
                            found = true;
                        }
                    }
                    Node::Null => next.push(id),
                    _ => {}
                }
            }
            if !found {
                return Err(match there.as_slice() {
                    [] => format!("there is no field {self}"),
                    there => format!("there is no field {self}; {}", instead(name, there.iter().copied())),
                });
            }
            here = next;
        }
        Ok(here)
    }

    /// Its value in a datum; `None`: null, or another branch of a union that has no such field.
    fn part<'a>(&self, whole: &Part<'a>) -> Result<Option<Part<'a>>, Malformed> {
        let mut part = *whole;
        for name in &self.0 {
            match part.field(name)? {
                Some(inner) => part = inner,
                None => return Ok(None),
            }
        }
        Ok(Some(part).filter(|part| !part.is_null()))
    }
}

fn branches(nodes: &Nodes, id: Id) -> Vec<Id> {
    match nodes.get(id) {
        Node::Union(branches) => branches.to_vec(),
        _ => vec![id],
    }
}

impl Literal {
    fn fits(&self, node: &Node) -> bool {
        match self {
            Literal::Text(_) => matches!(node, Node::String | Node::Enum(_)),
            Literal::Int(_) | Literal::Float(_) => {
                matches!(node, Node::Int | Node::Long | Node::Float | Node::Double)
            }
            Literal::Bool(_) => matches!(node, Node::Boolean),
        }
    }

    /// How a value compares with it; `None`: not at all (another type, or not a number).
    fn order(&self, part: &Part<'_>) -> Option<Ordering> {
        match self {
            Literal::Text(text) => Some(part.as_str()?.as_bytes().cmp(text.as_bytes())),
            Literal::Bool(literal) => Some(part.as_bool()?.cmp(literal)),
            Literal::Int(literal) => match part.as_i64() {
                Some(value) => Some(value.cmp(literal)),
                None => int_to_float(*literal, part.as_f64()?).map(Ordering::reverse),
            },
            Literal::Float(literal) => match part.as_i64() {
                Some(value) => int_to_float(value, *literal),
                // A float's 0.1 is the float next to 0.1.
                None if part.type_name() == "float" => {
                    part.as_f64()?.partial_cmp(&f64::from(*literal as f32))
                }
                None => part.as_f64()?.partial_cmp(literal),
            },
        }
    }
}

/// How an integer compares with a float, exactly; `None`: with what is not a number.
fn int_to_float(int: i64, float: f64) -> Option<Ordering> {
    const BEYOND: f64 = 9_223_372_036_854_775_808.0; // 2^63
    if float.is_nan() {
        None
    } else if float >= BEYOND {
        Some(Ordering::Less)
    } else if float < -BEYOND {
        Some(Ordering::Greater)
    } else {
        // Within the range of i64 truncation is exact.
        Some(int.cmp(&(float as i64)).then_with(|| 0.0f64.total_cmp(&(float - float.trunc() + 0.0))))
    }
}

impl Expression {
    fn check(&self, nodes: &Nodes) -> Result<(), String> {
        match self {
            Expression::Any(all) | Expression::All(all) => all.iter().try_for_each(|one| one.check(nodes)),
            Expression::Not(inner) => inner.check(nodes),
            Expression::Compare(path, _, literal) => fits(nodes, path, literal),
            Expression::In(path, literals) => {
                literals.iter().try_for_each(|literal| fits(nodes, path, literal))
            }
            Expression::Null(path) => path.nodes(nodes).map(|_| ()),
        }
    }

    fn holds(&self, whole: &Part<'_>) -> Result<bool, Malformed> {
        match self {
            Expression::Any(all) => {
                for one in all {
                    if one.holds(whole)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Expression::All(all) => {
                for one in all {
                    if !one.holds(whole)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Expression::Not(inner) => inner.holds(whole).map(|holds| !holds),
            Expression::Compare(path, operator, literal) => {
                let order = path.part(whole)?.map(|part| literal.order(&part));
                Ok(match (order, operator) {
                    // Another type than the literal's is another value, and what is not a number too.
                    (Some(order), Operator::Unequal) => order != Some(Ordering::Equal),
                    (Some(Some(order)), operator) => operator.allows(order),
                    _ => false,
                })
            }
            Expression::In(path, literals) => {
                let part = path.part(whole)?;
                let is =
                    |part: &Part<'_>| literals.iter().any(|one| one.order(part) == Some(Ordering::Equal));
                Ok(part.as_ref().is_some_and(is))
            }
            Expression::Null(path) => Ok(path.part(whole)?.is_none()),
        }
    }
}

fn fits(nodes: &Nodes, path: &Path, literal: &Literal) -> Result<(), String> {
    let ids = path.nodes(nodes)?;
    if ids.iter().any(|id| literal.fits(nodes.get(*id))) {
        return Ok(());
    }
    let types: Vec<_> = ids.iter().map(|id| nodes.title(*id)).collect();
    Err(format!("field {path} is {}, which is not compared with {literal}", types.join(" or ")))
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Literal::Text(text) => write!(f, "the text '{}'", text.replace('\'', "''")),
            Literal::Int(value) => write!(f, "the number {value}"),
            Literal::Float(value) => write!(f, "the number {value}"),
            Literal::Bool(value) => write!(f, "{value}"),
        }
    }
}

impl Operator {
    fn allows(self, order: Ordering) -> bool {
        match self {
            Operator::Equal => order.is_eq(),
            Operator::Unequal => order.is_ne(),
            Operator::Less => order.is_lt(),
            Operator::LessOrEqual => order.is_le(),
            Operator::Greater => order.is_gt(),
            Operator::GreaterOrEqual => order.is_ge(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token<'a> {
    /// A name, with its dots, or a word of the language.
    Word(&'a str),
    Literal(Literal),
    Operator(Operator),
    Open,
    Close,
    Comma,
    End,
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn expected<T>(&self, what: impl Into<String>) -> Result<T, Error> {
        let rest: String = self.rest.trim_start().chars().take(30).collect();
        Err(Error::Syntax { rest, what: format!("expected {}", what.into()) })
    }

    fn filter(&mut self) -> Result<Expression, Error> {
        self.list("or", Parser::either, Expression::Any)
    }

    fn either(&mut self) -> Result<Expression, Error> {
        self.list("and", Parser::unit, Expression::All)
    }

    fn list(
        &mut self,
        word: &str,
        each: impl Fn(&mut Self) -> Result<Expression, Error>,
        join: impl Fn(Vec<Expression>) -> Expression,
    ) -> Result<Expression, Error> {
        let first = each(self)?;
        let mut all = vec![first];
        while self.word(word)? {
            all.push(each(self)?);
        }
        match (all.pop(), all.is_empty()) {
            (Some(only), true) => Ok(only),
            (last, _) => {
                all.extend(last);
                Ok(join(all))
            }
        }
    }

    fn unit(&mut self) -> Result<Expression, Error> {
        if self.word("not")? {
            return self.nested(|parser| Ok(Expression::Not(Box::new(parser.unit()?))));
        }
        match self.peek()? {
            Token::Open => self.nested(|parser| {
                parser.next()?;
                let inner = parser.filter()?;
                parser.token(&Token::Close, "`)`")?;
                Ok(inner)
            }),
            Token::Word(_) => self.comparison(),
            _ => self.expected("a field, `not` or `(`"),
        }
    }

    fn nested(
        &mut self,
        inner: impl FnOnce(&mut Self) -> Result<Expression, Error>,
    ) -> Result<Expression, Error> {
        self.depth += 1;
        if self.depth > MAX_NESTING {
            return self.expected(format!("no more than {MAX_NESTING} levels of parentheses and `not`"));
        }
        let inner = inner(self);
        self.depth -= 1;
        inner
    }

    fn comparison(&mut self) -> Result<Expression, Error> {
        let Token::Word(field) = self.next()? else { return self.expected("a field") };
        if field.split('.').any(str::is_empty) {
            return self.expected(format!("a field's name before it, not `{field}`"));
        }
        let path = Path(field.split('.').map(str::to_owned).collect());
        if self.word("is")? {
            let not = self.word("not")?;
            if !self.word("null")? {
                return self.expected("`null`");
            }
            return Ok(negated(not, Expression::Null(path)));
        }
        let not = self.word("not")?;
        if self.word("in")? {
            self.token(&Token::Open, "`(`")?;
            let mut literals = vec![self.literal()?];
            while self.peek()? == Token::Comma {
                self.next()?;
                literals.push(self.literal()?);
            }
            self.token(&Token::Close, "`,` or `)`")?;
            return Ok(negated(not, Expression::In(path, literals)));
        }
        match self.peek()? {
            Token::Operator(operator) if !not => {
                self.next()?;
                Ok(Expression::Compare(path, operator, self.literal()?))
            }
            _ if not => self.expected("`in`"),
            _ => self.expected("one of = != < <= > >= `in` `is`"),
        }
    }

    fn literal(&mut self) -> Result<Literal, Error> {
        match self.peek()? {
            Token::Literal(literal) => {
                self.next()?;
                Ok(literal)
            }
            Token::Word(word) if word.eq_ignore_ascii_case("true") || word.eq_ignore_ascii_case("false") => {
                self.next()?;
                Ok(Literal::Bool(word.eq_ignore_ascii_case("true")))
            }
            Token::Word(word) if word.eq_ignore_ascii_case("null") => {
                self.expected("a value; whether a field is null is asked by `is null`")
            }
            _ => self.expected("text in quotes, a number, true or false"),
        }
    }

    fn token(&mut self, token: &Token<'_>, what: &str) -> Result<(), Error> {
        if self.peek()? != *token {
            return self.expected(what);
        }
        self.next().map(|_| ())
    }

    /// Takes a word of the language, if it is next.
    fn word(&mut self, word: &str) -> Result<bool, Error> {
        let is = matches!(self.peek()?, Token::Word(next) if next.eq_ignore_ascii_case(word));
        if is {
            self.next()?;
        }
        Ok(is)
    }

    fn peek(&self) -> Result<Token<'a>, Error> {
        self.scan().map(|(token, _)| token)
    }

    fn next(&mut self) -> Result<Token<'a>, Error> {
        let (token, rest) = self.scan()?;
        self.rest = rest;
        Ok(token)
    }

    /// The next token, and what is behind it.
    fn scan(&self) -> Result<(Token<'a>, &'a str), Error> {
        let rest = self.rest.trim_start();
        let Some(first) = rest.chars().next() else { return Ok((Token::End, rest)) };
        let signs = [
            ("!=", Token::Operator(Operator::Unequal)),
            ("<>", Token::Operator(Operator::Unequal)),
            ("<=", Token::Operator(Operator::LessOrEqual)),
            (">=", Token::Operator(Operator::GreaterOrEqual)),
            ("==", Token::Operator(Operator::Equal)),
            ("=", Token::Operator(Operator::Equal)),
            ("<", Token::Operator(Operator::Less)),
            (">", Token::Operator(Operator::Greater)),
            ("(", Token::Open),
            (")", Token::Close),
            (",", Token::Comma),
        ];
        for (sign, token) in signs {
            if let Some(after) = rest.strip_prefix(sign) {
                return Ok((token, after));
            }
        }
        if first == '\'' || first == '"' {
            return self.quoted(rest, first);
        }
        let within = |char: char| char.is_ascii_alphanumeric() || "_.+-".contains(char);
        let end = rest.find(|char| !within(char)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if first.is_ascii_digit() || first == '-' || first == '+' || first == '.' {
            let int = word.parse().ok().map(Literal::Int);
            let float = || word.parse().ok().filter(|value: &f64| value.is_finite()).map(Literal::Float);
            return match int.or_else(float) {
                Some(literal) => Ok((Token::Literal(literal), after)),
                None => self.expected("a number"),
            };
        }
        let end = word.find(['+', '-']).unwrap_or(word.len());
        match rest.split_at(end) {
            ("", _) => self.expected("a field, text in quotes or a number"),
            (word, after) => Ok((Token::Word(word), after)),
        }
    }

    fn quoted(&self, rest: &'a str, quote: char) -> Result<(Token<'a>, &'a str), Error> {
        let mut text = String::new();
        let mut chars = rest.char_indices().skip(1).peekable();
        while let Some((at, char)) = chars.next() {
            if char != quote {
                text.push(char);
            } else if chars.next_if(|(_, next)| *next == quote).is_some() {
                text.push(quote);
            } else {
                let after = rest.get(at + quote.len_utf8()..).unwrap_or_default();
                return Ok((Token::Literal(Literal::Text(text)), after));
            }
        }
        self.expected(format!("a {quote} at the end of the text"))
    }
}

fn negated(not: bool, expression: Expression) -> Expression {
    if not { Expression::Not(Box::new(expression)) } else { expression }
}

#[cfg(test)]
mod tests;
