//! Which gRPC code an error becomes: the one match.

use tonic::{Code, Status};

use crate::error::Error;

/// Characters of a message that are sent. It may quote a key, and it travels as an HTTP header: one
/// that is too long loses the client the code as well.
const MESSAGE_SHOWN: usize = 1000;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(code(&error), shortened(error.to_string()))
    }
}

fn shortened(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(MESSAGE_SHOWN) {
        message.truncate(end);
        message.push_str("...");
    }
    message
}

fn code(error: &Error) -> Code {
    match error {
        Error::InvalidArgument(_) => Code::InvalidArgument,
        Error::NotFound(_) => Code::NotFound,
        Error::AlreadyExists(_) => Code::AlreadyExists,
        Error::FailedPrecondition(_) => Code::FailedPrecondition,
        Error::Unavailable(_) | Error::WouldWait => Code::Unavailable,
        Error::ResourceExhausted(_) => Code::ResourceExhausted,
        Error::DataLoss(_) => Code::DataLoss,
        Error::Cancelled => Code::Cancelled,
        Error::Database(error) => match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Code::ResourceExhausted,
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                Code::Unavailable
            }
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                Code::DataLoss
            }
            _ => Code::Internal,
        },
        Error::BadRow { .. } => Code::DataLoss,
        Error::Io { .. } => Code::Internal,
    }
}
