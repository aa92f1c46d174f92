//! Text of one filter to selectors, in containerd's grammar.
//!
//! Decides what is a filter and where one stops being one. The grammar is containerd's down to its
//! oddities, since a client may rely on any of them: white space is welcome in front of a field, an
//! operator or a value and nowhere else, a run of operator characters is one operator, and `/` and
//! `|` open a quote even where no quote may stand.

use unicode_general_category::{GeneralCategory as Category, get_general_category};

use super::cursor::Cursor;

/// One condition of a filter, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selector {
    /// The parts of the field's path, at least one. Escapes can make bytes that are not UTF-8.
    pub(super) path: Vec<Vec<u8>>,
    /// What is asked of the field.
    pub(super) test: Test,
}

/// What a selector asks of its field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    /// That it is there.
    Present,
    /// That it compares to a value in this way.
    Compare(Operator, Vec<u8>),
}

/// How field and value are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    /// `==`
    Equal,
    /// `!=`
    Differs,
    /// `~=`
    Matches,
}

/// Why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Byte at which reading stopped.
    pub(super) at: usize,
    /// What is wrong there.
    pub(super) reason: Reason,
}

/// What is wrong at a place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Reason {
    #[error("no filter contains U+{:04X}", *.0 as u32)]
    Character(char),
    #[error("expected a field, as letters, digits and \"_\" or in double quotes")]
    Field,
    #[error("expected an operator (==, != or ~=) or \",\"")]
    NoOperator,
    #[error("\"{0}\" is no operator; use ==, != or ~=")]
    Operator(String),
    #[error("expected a value; one that is empty or begins with any of , . = ! ~ needs quotes")]
    Value,
    #[error("\"{0}\" quotes only what follows ~=; use double quotes")]
    Quote(char),
    #[error("the quote that opens here is not closed on its line")]
    Unclosed,
    #[error("unknown or incomplete escape; a backslash itself is written as two")]
    Escape,
    #[error("expected \",\" or the end")]
    End,
}

impl Reason {
    fn at(self, at: usize) -> Fault {
        Fault { at, reason: self }
    }
}

type Parsed<T> = Result<T, Fault>;

/// Reads a filter that is not empty.
pub(super) fn selectors(text: &str) -> Parsed<Vec<Selector>> {
    let banned = ['\0', char::REPLACEMENT_CHARACTER];
    if let Some((at, c)) = text.char_indices().find(|(_, c)| banned.contains(c)) {
        return Err(Reason::Character(c).at(at));
    }
    let mut from = Cursor::new(text);
    let mut found = vec![selector(&mut from)?];
    while from.eat(",") {
        found.push(selector(&mut from)?);
    }
    match from.peek() {
        None => Ok(found),
        Some(_) => Err(Reason::End.at(from.at())),
    }
}

fn selector(from: &mut Cursor<'_>) -> Parsed<Selector> {
    let mut path = vec![field(from)?];
    while from.eat(".") {
        path.push(field(from)?);
    }
    let test = match from.peek() {
        None | Some(',') => Test::Present,
        Some(_) => {
            let operator = operator(from)?;
            Test::Compare(operator, value(from, operator)?)
        }
    };
    Ok(Selector { path, test })
}

fn field(from: &mut Cursor<'_>) -> Parsed<Vec<u8>> {
    skip_space(from);
    match from.peek() {
        Some('"') => quoted(from, '"'),
        Some(quote @ ('/' | '|')) => Err(Reason::Quote(quote).at(from.at())),
        Some(c) if is_field(c) => Ok(from.take_while(is_field).into()),
        _ => Err(Reason::Field.at(from.at())),
    }
}

fn operator(from: &mut Cursor<'_>) -> Parsed<Operator> {
    skip_space(from);
    let at = from.at();
    match from.take_while(is_operator) {
        "==" => Ok(Operator::Equal),
        "!=" => Ok(Operator::Differs),
        "~=" => Ok(Operator::Matches),
        "" => Err(Reason::NoOperator.at(at)),
        other => Err(Reason::Operator(super::excerpt(other)).at(at)),
    }
}

fn value(from: &mut Cursor<'_>, operator: Operator) -> Parsed<Vec<u8>> {
    skip_space(from);
    let start = from.at();
    match from.peek() {
        Some('"') => quoted(from, '"'),
        Some(quote @ ('/' | '|')) if operator == Operator::Matches => quoted(from, quote),
        Some(quote @ ('/' | '|')) => Err(Reason::Quote(quote).at(start)),
        Some(c) if !matches!(c, ',' | '.') && !is_operator(c) => Ok(bare(from)),
        _ => Err(Reason::Value.at(start)),
    }
}

/// The first character has been looked at, and may be one that could not follow it.
fn bare(from: &mut Cursor<'_>) -> Vec<u8> {
    let mut value: Vec<u8> = from.bump().map(String::from).unwrap_or_default().into();
    value.extend_from_slice(from.take_while(is_value).as_bytes());
    value
}

fn quoted(from: &mut Cursor<'_>, quote: char) -> Parsed<Vec<u8>> {
    let opened = from.at();
    from.bump();
    let mut value = Vec::new();
    loop {
        let plain = from.take_while(|c| c != quote && !matches!(c, '\\' | '\n'));
        value.extend_from_slice(plain.as_bytes());
        let at = from.at();
        match from.bump() {
            Some('\\') => {
                let bytes = escape(from, quote).ok_or_else(|| Reason::Escape.at(at))?;
                value.extend(bytes);
            }
            Some(c) if c == quote => return Ok(value),
            _ => return Err(Reason::Unclosed.at(opened)),
        }
    }
}

/// What the escape after a backslash stands for.
fn escape(from: &mut Cursor<'_>, quote: char) -> Option<Vec<u8>> {
    if matches!(from.peek(), Some('0'..='7')) {
        let byte = u8::try_from(from.digits(3, 8)?).ok()?;
        return Some(vec![byte]);
    }
    let byte = match from.bump()? {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' => b'\\',
        'x' => u8::try_from(from.digits(2, 16)?).ok()?,
        'u' => return code_point(from.digits(4, 16)?),
        'U' => return code_point(from.digits(8, 16)?),
        c if c == quote => u8::try_from(c).ok()?,
        _ => return None,
    };
    Some(vec![byte])
}

/// UTF-8 of a code point. containerd computes with 32 signed bits and takes what comes out negative
/// for a byte.
fn code_point(number: u32) -> Option<Vec<u8>> {
    let surrogate = (0xd800..0xe000).contains(&number);
    match char::from_u32(number) {
        Some(c) => Some(String::from(c).into()),
        None if surrogate => Some(String::from(char::REPLACEMENT_CHARACTER).into()),
        None if number > i32::MAX.unsigned_abs() => {
            let [byte, ..] = number.to_le_bytes();
            Some(vec![byte])
        }
        None => None,
    }
}

fn skip_space(from: &mut Cursor<'_>) {
    from.take_while(char::is_whitespace);
}

fn is_field(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn is_operator(c: char) -> bool {
    matches!(c, '=' | '!' | '~')
}

/// Letters, marks, numbers, punctuation and symbols; every space character is white space.
fn is_value(c: char) -> bool {
    let graphic = !matches!(
        get_general_category(c),
        Category::Control
            | Category::Format
            | Category::Surrogate
            | Category::PrivateUse
            | Category::Unassigned
            | Category::LineSeparator
            | Category::ParagraphSeparator
            | Category::SpaceSeparator
    );
    graphic && c != ',' && !c.is_whitespace()
}
