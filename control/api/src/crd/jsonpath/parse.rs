//! Parses paths.

use super::{JsonPath, Operand, Operator, Step};

/// What is left of a path.
pub struct Parser<'a> {
    /// The rest.
    pub rest: &'a str,
}

impl<'a> Parser<'a> {
    fn eat(&mut self, word: &str) -> bool {
        let rest = self.rest.strip_prefix(word);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn until(&mut self, end: impl Fn(char) -> bool) -> &'a str {
        let (text, rest) = self
            .rest
            .split_at(self.rest.find(end).unwrap_or(self.rest.len()));
        self.rest = rest;
        text
    }

    /// The steps up to what is none.
    pub fn steps(&mut self, depth: usize) -> Result<Vec<Step>, String> {
        let mut steps = Vec::new();
        self.eat("$");
        loop {
            if self.eat("..") {
                steps.push(Step::Recursive);
                if self.rest.is_empty() {
                    return Err("unexpected end after ..".to_owned());
                }
                if !self.rest.starts_with('[') {
                    steps.push(self.name()?);
                }
            } else if self.eat(".") {
                // A dot alone is the value itself, and may stand before a bracket.
                if !(self.rest.is_empty() || self.rest.starts_with(['[', ')', ' '])) {
                    steps.push(self.name()?);
                }
            } else if self.eat("[") {
                steps.push(self.bracket(depth)?);
            } else {
                return Ok(steps);
            }
        }
    }

    /// A field behind a dot; a backslash takes the meaning from the next character.
    fn name(&mut self) -> Result<Step, String> {
        if self.eat("*") {
            return Ok(Step::Wildcard);
        }
        let mut name = String::new();
        while let Some(c) = self.rest.chars().next() {
            if matches!(c, '.' | '[' | ']' | ')' | '=' | '!' | '<' | '>' | ' ' | ',') {
                break;
            }
            self.rest = &self.rest[c.len_utf8()..];
            match (c, self.rest.chars().next()) {
                ('\\', Some(escaped)) => {
                    name.push(escaped);
                    self.rest = &self.rest[escaped.len_utf8()..];
                }
                _ => name.push(c),
            }
        }
        if name.is_empty() {
            return Err(format!("a field is missing before {:?}", self.rest));
        }
        Ok(Step::Field(name))
    }

    fn bracket(&mut self, depth: usize) -> Result<Step, String> {
        if depth > 8 {
            return Err("filters inside filters are too deep".to_owned());
        }
        if self.eat("?(") {
            let filter = self.filter(depth + 1)?;
            return if self.eat(")]") {
                Ok(filter)
            } else {
                Err("unterminated filter".to_owned())
            };
        }
        let mut union = Vec::new();
        loop {
            self.until(|c| c != ' ');
            union.push(self.element()?);
            self.until(|c| c != ' ');
            if self.eat("]") {
                break;
            }
            if !self.eat(",") {
                return Err("unterminated array".to_owned());
            }
        }
        Ok(match (union.pop(), union.is_empty()) {
            (Some(only), true) => only,
            (last, _) => Step::Union(union.into_iter().chain(last).collect()),
        })
    }

    fn element(&mut self) -> Result<Step, String> {
        if self.eat("*") {
            return Ok(Step::Wildcard);
        }
        if self.rest.starts_with(['\'', '"']) {
            return Ok(Step::Field(self.quoted()?));
        }
        let text = self.until(|c| matches!(c, ']' | ','));
        let number = |text: &str| match text.trim() {
            "" => Ok(None),
            text => (text.parse().map(Some)).map_err(|_| format!("invalid array index {text}")),
        };
        let parts: Vec<&str> = text.split(':').collect();
        match parts.as_slice() {
            [one] => {
                (number(one)?.map(Step::Index)).ok_or_else(|| "an index is missing".to_owned())
            }
            [from, to] => Ok(Step::Slice(number(from)?, number(to)?, None)),
            [from, to, by] => Ok(Step::Slice(number(from)?, number(to)?, number(by)?)),
            _ => Err(format!("invalid array index {text}")),
        }
    }

    fn quoted(&mut self) -> Result<String, String> {
        let mut chars = self.rest.char_indices();
        let (_, quote) = chars.next().ok_or("a quote is missing")?;
        let mut text = String::new();
        while let Some((index, c)) = chars.next() {
            match c {
                '\\' => text.extend(chars.next().map(|(_, c)| c)),
                c if c == quote => {
                    self.rest = &self.rest[index + c.len_utf8()..];
                    return Ok(text);
                }
                c => text.push(c),
            }
        }
        Err("unterminated quoted string".to_owned())
    }

    fn filter(&mut self, depth: usize) -> Result<Step, String> {
        let left = self.operand(depth)?;
        self.until(|c| c != ' ');
        const OPERATORS: [(&str, Operator); 6] = [
            ("==", Operator::Equal),
            ("!=", Operator::NotEqual),
            ("<=", Operator::LessOrEqual),
            (">=", Operator::GreaterOrEqual),
            ("<", Operator::Less),
            (">", Operator::Greater),
        ];
        for (word, operator) in OPERATORS {
            if self.eat(word) {
                let right = self.operand(depth)?;
                self.until(|c| c != ' ');
                return Ok(Step::Filter(left, Some((operator, right))));
            }
        }
        Ok(Step::Filter(left, None))
    }

    fn operand(&mut self, depth: usize) -> Result<Operand, String> {
        self.until(|c| c != ' ');
        if self.eat("@") {
            return Ok(Operand::Path(JsonPath(self.steps(depth)?)));
        }
        if self.rest.starts_with(['\'', '"']) {
            return Ok(Operand::Literal(self.quoted()?.into()));
        }
        let word = self.until(|c| matches!(c, ')' | ' ' | '=' | '!' | '<' | '>'));
        serde_json::from_str(word)
            .map(Operand::Literal)
            .map_err(|_| format!("unrecognized operand {word:?}"))
    }
}
