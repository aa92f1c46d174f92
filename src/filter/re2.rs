//! RE2 syntax, as Go reads it, to the syntax of the `regex` crate.
//!
//! Decides what the same characters mean on both sides. The two languages agree on most, and where
//! they do not the expression is respelt: the Perl classes and `\b` know ASCII only, `\Q..\E` quotes,
//! octal escapes exist, a brace that counts nothing is itself, and a bracket class has no set
//! operators. What RE2 refuses and the crate would take (`a**`, `(?x)`, `\<`) is refused here. Two
//! things are taken that Go refuses: Unicode properties other than categories and scripts, and
//! nested counts whose product is above 1000.

use super::cursor::Cursor;

/// Highest count of a repetition.
const MAX_COUNT: u32 = 1000;

/// The classes that may stand between `[:` and `:]`.
const NAMED: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
    "space", "upper", "word", "xdigit",
];

/// Spells `pattern` for the `regex` crate; `None` where RE2 knows it to be invalid. What comes back
/// may still be invalid.
pub(super) fn translate(pattern: &str) -> Option<String> {
    let mut work = Translation {
        from: Cursor::new(pattern),
        last_named: pattern.rfind(":]"),
        to: String::with_capacity(pattern.len()),
    };
    let mut repeated = false;
    while let Some(first) = work.from.bump() {
        repeated = match first {
            '*' | '+' | '?' => work.repeat(repeated, &String::from(first))?,
            '{' => work.brace(repeated)?,
            _ => {
                work.item(first)?;
                false
            }
        };
    }
    Some(work.to)
}

struct Translation<'a> {
    from: Cursor<'a>,
    /// Where the last `:]` is, so that no unclosed `[:` searches the whole rest.
    last_named: Option<usize>,
    to: String,
}

impl Translation<'_> {
    /// Anything but a repetition.
    fn item(&mut self, first: char) -> Option<()> {
        match first {
            '[' => self.class(),
            '(' => self.group(),
            '\\' => self.escape(),
            _ => {
                self.to.push(first);
                Some(())
            }
        }
    }

    /// A repetition may not repeat another one. Always returns true.
    fn repeat(&mut self, repeated: bool, operator: &str) -> Option<bool> {
        if repeated {
            return None;
        }
        self.to.push_str(operator);
        if self.from.eat("?") {
            self.to.push('?');
        }
        Some(true)
    }

    fn brace(&mut self, repeated: bool) -> Option<bool> {
        let mut ahead = Cursor::new(self.from.rest());
        let Some((min, max)) = counts(&mut ahead) else {
            self.literal('{');
            return Some(false);
        };
        let inner = self.from.rest().get(..ahead.at())?;
        self.from.eat(inner);
        let most = max.unwrap_or(min);
        if min > most || most > MAX_COUNT {
            return None;
        }
        self.repeat(repeated, &format!("{{{inner}"))
    }

    fn group(&mut self) -> Option<()> {
        self.to.push('(');
        if !self.from.eat("?") {
            return Some(());
        }
        if self.from.eat("P<") || self.from.eat("<") {
            let name = self.from.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
            // RE2 lets a name begin with a digit.
            self.to.push_str("?P<n");
            self.to.push_str(name);
            self.to.push('>');
            return (!name.is_empty() && self.from.eat(">")).then_some(());
        }
        self.flags()
    }

    /// The flags after `(?`: repeated or contradictory ones count as written last, minus last.
    fn flags(&mut self) -> Option<()> {
        let on = self.from.take_while(is_flag);
        let minus = self.from.eat("-");
        let off = self.from.take_while(is_flag);
        let close = self.from.bump().filter(|c| matches!(c, ':' | ')'))?;
        if minus && off.is_empty() {
            return None;
        }
        let set: String = "imsU".chars().filter(|c| on.contains(*c) && !off.contains(*c)).collect();
        let cleared: String = "imsU".chars().filter(|c| off.contains(*c)).collect();
        if set.is_empty() && cleared.is_empty() && close == ')' {
            // The crate knows no group without flags; an empty one says the same.
            self.to.push_str("?:)");
            return Some(());
        }
        self.to.push('?');
        self.to.push_str(&set);
        if !cleared.is_empty() {
            self.to.push('-');
            self.to.push_str(&cleared);
        }
        self.to.push(close);
        Some(())
    }

    /// An escape outside brackets.
    fn escape(&mut self) -> Option<()> {
        match self.from.peek()? {
            'Q' => self.quotation(),
            'A' => self.known("\\A"),
            'z' => self.known("\\z"),
            'b' => self.known("(?-u:\\b)"),
            'B' => self.known("(?-u:\\B)"),
            _ if self.set()? => {}
            _ => {
                let c = self.code()?;
                self.literal(c);
            }
        }
        Some(())
    }

    fn known(&mut self, spelling: &str) {
        self.from.bump();
        self.to.push_str(spelling);
    }

    /// Takes all up to `\E`, or up to the end, as it is.
    fn quotation(&mut self) {
        self.from.bump();
        while !self.from.eat("\\E") {
            match self.from.bump() {
                Some(c) => self.literal(c),
                None => return,
            }
        }
    }

    /// After a backslash: a Perl or Unicode class, which reads the same inside and outside brackets.
    fn set(&mut self) -> Option<bool> {
        let class = match self.from.peek()? {
            'd' => "[0-9]",
            'D' => "[^0-9]",
            's' => "[\\t\\n\\f\\r ]",
            'S' => "[^\\t\\n\\f\\r ]",
            'w' => "[0-9A-Za-z_]",
            'W' => "[^0-9A-Za-z_]",
            'p' => return self.property(false),
            'P' => return self.property(true),
            _ => return Some(false),
        };
        self.known(class);
        Some(true)
    }

    fn property(&mut self, negated: bool) -> Option<bool> {
        self.from.bump();
        let braced = self.from.eat("{");
        let negated = negated != (braced && self.from.eat("^"));
        let name = if braced {
            self.from.take_while(|c| c.is_ascii_alphanumeric() || c == '_').to_owned()
        } else {
            self.from.bump().filter(char::is_ascii_alphabetic)?.to_string()
        };
        if name.is_empty() || (braced && !self.from.eat("}")) {
            return None;
        }
        self.to.push_str(if negated { "\\P{" } else { "\\p{" });
        self.to.push_str(&name);
        self.to.push('}');
        Some(true)
    }

    /// After a backslash: an escape that stands for one character.
    fn code(&mut self) -> Option<char> {
        let c = match self.from.bump()? {
            'a' => '\x07',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            'x' => return self.hex(),
            first @ '0'..='7' => return self.octal(first),
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => c,
            _ => return None,
        };
        Some(c)
    }

    fn hex(&mut self) -> Option<char> {
        if !self.from.eat("{") {
            return char::from_u32(self.from.digits(2, 16)?);
        }
        let digits = self.from.take_while(|c| c.is_ascii_hexdigit());
        let number = digits.chars().filter_map(|c| c.to_digit(16));
        let number = number.fold(0_u32, |sum, digit| sum.saturating_mul(16).saturating_add(digit));
        let closed = !digits.is_empty() && self.from.eat("}");
        char::from_u32(number).filter(|_| closed)
    }

    /// A digit other than 0 that stands alone would be a back reference, which RE2 has not.
    fn octal(&mut self, first: char) -> Option<char> {
        let mut number = first.to_digit(8)?;
        let mut length = 1;
        while let (true, Some(digit)) = (length < 3, self.from.peek().and_then(|c| c.to_digit(8))) {
            self.from.bump();
            number = number * 8 + digit;
            length += 1;
        }
        char::from_u32(number).filter(|_| first == '0' || length > 1)
    }

    /// A bracket class; a `]` that comes first is a member.
    fn class(&mut self) -> Option<()> {
        self.to.push('[');
        if self.from.eat("^") {
            self.to.push('^');
        }
        self.member()?;
        while !self.from.eat("]") {
            self.member()?;
        }
        self.to.push(']');
        Some(())
    }

    fn member(&mut self) -> Option<()> {
        let start = self.from.at();
        let named = self.last_named.is_some_and(|last| last >= start.saturating_add(2));
        if named && self.from.eat("[:") {
            return self.named();
        }
        let low = match self.from.bump()? {
            '\\' if self.set()? => return Some(()),
            '\\' => self.code()?,
            c => c,
        };
        self.literal(low);
        let rest = self.from.rest();
        if rest.len() > 1 && rest.starts_with('-') && !rest.starts_with("-]") {
            self.from.bump();
            let high = match self.from.bump()? {
                '\\' => self.code()?,
                c => c,
            };
            self.to.push('-');
            self.literal(high);
        }
        Some(())
    }

    fn named(&mut self) -> Option<()> {
        let negated = self.from.eat("^");
        let name = self.from.take_while(|c| c.is_ascii_lowercase());
        if !NAMED.contains(&name) || !self.from.eat(":]") {
            return None;
        }
        self.to.push_str(if negated { "[:^" } else { "[:" });
        self.to.push_str(name);
        self.to.push_str(":]");
        Some(())
    }

    /// Writes a character that is only itself, wherever it stands.
    fn literal(&mut self, c: char) {
        if c.is_ascii() && !c.is_ascii_alphanumeric() {
            self.to.push_str(&format!("\\x{:02X}", u32::from(c)));
        } else {
            self.to.push(c);
        }
    }
}

fn is_flag(c: char) -> bool {
    matches!(c, 'i' | 'm' | 's' | 'U')
}

/// Reads `n}`, `n,}` or `n,m}`; anything else after a brace counts nothing.
fn counts(from: &mut Cursor<'_>) -> Option<(u32, Option<u32>)> {
    let min = count(from)?;
    let max = match from.eat(",") {
        true if from.peek() == Some('}') => None,
        true => Some(count(from)?),
        false => Some(min),
    };
    from.eat("}").then_some((min, max))
}

/// A number without leading zeros; what is too large for one is only too large.
fn count(from: &mut Cursor<'_>) -> Option<u32> {
    let digits = from.take_while(|c| c.is_ascii_digit());
    let padded = digits.len() > 1 && digits.starts_with('0');
    (!digits.is_empty() && !padded).then(|| digits.parse().unwrap_or(u32::MAX))
}
