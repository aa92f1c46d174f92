//! Templates such as `{pod.uid}`: how a rule says what a capture or a directory must be.

use std::fmt;

/// A fact about the container a snapshot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// `pod.uid`
    PodUid,
    /// `pod.name`
    PodName,
    /// `pod.namespace`
    PodNamespace,
    /// `container.name`
    ContainerName,
    /// `container.id`
    ContainerId,
}

impl Field {
    /// Every field there is.
    pub(crate) const ALL: [Self; 5] =
        [Self::PodUid, Self::PodName, Self::PodNamespace, Self::ContainerName, Self::ContainerId];

    /// How it is written.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::PodUid => "pod.uid",
            Self::PodName => "pod.name",
            Self::PodNamespace => "pod.namespace",
            Self::ContainerName => "container.name",
            Self::ContainerId => "container.id",
        }
    }
}

/// Text with fields in braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Field),
}

impl Template {
    /// Reads a template; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) =
                after.split_once('}').ok_or_else(|| format!("{text:?}: a brace is not closed"))?;
            let field =
                Field::ALL.into_iter().find(|field| field.as_str() == name).ok_or_else(|| {
                    let known = Field::ALL.map(Field::as_str).join(", ");
                    format!("{text:?}: there is no field {name:?}; fields are {known}")
                })?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::Field(field));
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }

    /// A template that is one field.
    pub(crate) fn of(field: Field) -> Self {
        Self(vec![Part::Field(field)])
    }

    /// The fields it names.
    pub(crate) fn fields(&self) -> impl Iterator<Item = Field> + '_ {
        self.0.iter().filter_map(|part| match part {
            Part::Field(field) => Some(*field),
            Part::Text(_) => None,
        })
    }

    /// Fills the fields in; the first that `value` does not know is the error.
    pub(crate) fn fill<'a>(
        &self,
        value: impl Fn(Field) -> Option<&'a str>,
    ) -> Result<String, Field> {
        self.0.iter().try_fold(String::new(), |mut filled, part| {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Field(field) => filled.push_str(value(*field).ok_or(*field)?),
            }
            Ok(filled)
        })
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(text),
            Part::Field(field) => write!(f, "{{{}}}", field.as_str()),
        })
    }
}
